(function () {
  'use strict';
  // Whatever a model or a database wrote enters the page as text nodes only.
  const data = JSON.parse(document.getElementById('data').textContent);
  const PAGE = 100;
  const SIGNS = { correct: '✓', wrong: '✗', undetermined: '?' };
  const byId = function (id) { return document.getElementById(id); };
  const last = function (question) { return question.answers[question.answers.length - 1]; };
  const words = function (name) { return name.replace(/_/g, ' '); };

  function make(tag, attributes, children) {
    const element = document.createElement(tag);
    Object.keys(attributes || {}).forEach(function (name) {
      element.setAttribute(name, attributes[name]);
    });
    [].concat(children === undefined ? [] : children).forEach(function (child) {
      element.append(child);
    });
    return element;
  }

  // ---- which questions are shown

  const SHOWS = [
    ['all', 'all', function () { return true; }],
    ['failed', 'not correct in the last run', function (q) { return last(q).verdict !== 'correct'; }],
    ['changed', 'changed between runs', function (q) {
      return q.answers.some(function (answer) { return answer.verdict !== q.answers[0].verdict; });
    }],
    ['refuted', 'refuted by the suite only', function (q) { return last(q).refuted !== undefined; }]
  ];
  const VALUES = {
    db: function (q) { return [q.db]; },
    hardness: function (q) { return q.hardness === undefined ? [] : [q.hardness]; },
    level: function (q) { return q.level === undefined ? [] : [q.level]; },
    class: function (q) {
      return q.answers.flatMap(function (answer) { return answer.classes || []; });
    }
  };
  const LABELS = { db: 'database', hardness: 'hardness', level: 'level', class: 'error class' };
  const chosen = { show: 'all', db: '', hardness: '', level: '', class: '', text: '' };
  const texts = data.questions.map(function (q) {
    return [q.id, q.question].concat(q.answers[0].gold.join(''), q.answers.map(function (answer) {
      return answer.sql.join('');
    })).join('\n').toLowerCase();
  });
  let found = [];
  let numShown = 0;

  function count(test) { return data.questions.filter(test).length; }

  function buildFilters() {
    SHOWS.forEach(function (show) {
      const number = count(show[2]);
      if (show[0] !== 'all' && !number) { return; }
      const input = make('input', { type: 'radio', name: 'show', value: show[0] });
      input.addEventListener('change', function () { chosen.show = show[0]; update(); });
      byId('shows').append(make('label', {}, [
        input, ' ' + show[1] + ' (' + number.toLocaleString('en') + ')'
      ]), ' ');
    });
    Object.keys(VALUES).forEach(function (name) {
      const counts = new Map();
      data.questions.forEach(function (q) {
        new Set(VALUES[name](q)).forEach(function (value) {
          counts.set(value, (counts.get(value) || 0) + 1);
        });
      });
      if (counts.size < 2 && name !== 'class' || !counts.size) { return; }
      const select = make('select', { name: name }, make('option', { value: '' }, 'any'));
      Array.from(counts.keys()).sort().forEach(function (value) {
        select.append(make('option', { value: value },
          (name === 'class' ? words(value) : value) + ' (' + counts.get(value) + ')'));
      });
      select.addEventListener('change', function () { chosen[name] = select.value; update(); });
      byId('choices').append(make('label', {}, [LABELS[name], select]));
    });
    const search = make('input', { type: 'search', name: 'text' });
    search.addEventListener('input', function () {
      chosen.text = search.value.toLowerCase();
      update();
    });
    byId('choices').append(make('label', { class: 'search' }, ['text in question or SQL', search]));
    byId('filters').addEventListener('submit', function (event) { event.preventDefault(); });
  }

  function choose(values) {
    Object.keys(chosen).forEach(function (name) {
      chosen[name] = values[name] === undefined ? (name === 'show' ? 'all' : '') : values[name];
      const control = byId('filters').elements[name];
      if (control) { control.value = chosen[name]; }
    });
    update();
  }

  function update() {
    const show = SHOWS.find(function (candidate) { return candidate[0] === chosen.show; });
    found = [];
    data.questions.forEach(function (q, i) {
      const fits = show[2](q) && texts[i].includes(chosen.text) &&
        Object.keys(VALUES).every(function (name) {
          return !chosen[name] || VALUES[name](q).includes(chosen[name]);
        });
      if (fits) { found.push(i); }
    });
    byId('questions').replaceChildren();
    numShown = 0;
    showMore();
  }

  function showMore() {
    const next = found.slice(numShown, numShown + PAGE);
    next.forEach(function (i) { byId('questions').append(makeQuestion(i)); });
    numShown += next.length;
    const left = found.length - numShown;
    byId('count').textContent = found.length.toLocaleString('en') + ' of ' +
      data.questions.length.toLocaleString('en') + ' questions' +
      (left ? ', the first ' + numShown.toLocaleString('en') + ' are listed' : '');
    byId('more').hidden = !left;
    byId('more').textContent = 'Show ' + Math.min(left, PAGE) + ' more';
  }

  // ---- one question

  function makeQuestion(i) {
    const q = data.questions[i];
    const marks = q.answers.map(function (answer) {
      return make('span', { class: answer.verdict, title: answer.verdict }, SIGNS[answer.verdict]);
    });
    const verdicts = q.answers.map(function (answer, run) {
      return data.runs[run] + ' ' + answer.verdict;
    });
    const tags = last(q).refuted === undefined ? [] : [make('span', { class: 'tag' }, 'refuted by the suite')];
    const item = make('details', { id: 'q' + (i + 1) }, make('summary', {}, [
      make('span', { class: 'marks', 'aria-hidden': 'true' }, marks),
      make('span', { class: 'sr' }, verdicts.join(', ') + ': '),
      make('span', { class: 'asked' }, q.question)
    ].concat(tags, make('span', { class: 'soft' }, q.db))));
    item.addEventListener('toggle', function () {
      if (item.open && item.childElementCount === 1) { item.append(makeBody(q, i)); }
    });
    return item;
  }

  function makeBody(q, i) {
    const about = [q.id, q.db, q.hardness, q.level].filter(Boolean).join(' · ');
    const link = make('a', { href: '#q' + (i + 1) }, 'link to this question');
    return make('div', { class: 'body' }, [make('p', { class: 'soft' }, [about + ' · ', link])].concat(
      q.answers.map(function (answer, run) { return makeAnswer(q, answer, run); })
    ));
  }

  function makeAnswer(q, answer, run) {
    const key = make('span', { class: 'key k' + run % 5 }, data.keys[run]);
    const heading = make('h4', {}, (data.runs.length > 1 ? [key, ' '] : []).concat(
      data.runs[run] + ': ', make('span', { class: answer.verdict }, answer.verdict), ', ' + answer.reason
    ));
    const tags = (answer.classes || []).map(function (name) {
      return make('span', { class: 'tag' }, words(name));
    });
    const parts = [heading];
    if (answer.refuted !== undefined) {
      parts.push(make('p', {}, 'Not refuted on the original database, but by ' + answer.refuted + '.'));
    }
    if (tags.length) { parts.push(make('p', {}, tags)); }
    if (answer.facts.length) {
      parts.push(make('p', { class: 'soft' }, answer.facts.map(function (fact) {
        return fact[0] + ': ' + fact[1];
      }).join(' · ')));
    }
    const side = make('div', { class: 'side' }, [
      make('div', {}, [make('h5', {}, 'gold'), makeSQL(answer.gold, 'missing')]),
      make('div', {}, [make('h5', {}, 'prediction'), makeSQL(answer.sql, 'extra')])
    ]);
    if (answer.result !== undefined && q.result !== undefined) {
      side.append(
        make('div', {}, [make('h5', {}, 'result of gold'), makeResult(q.result)]),
        make('div', {}, [make('h5', {}, 'result of the prediction'), makeResult(answer.result)])
      );
    } else if (answer.error !== undefined) {
      parts.push(make('pre', { class: 'wrong' }, answer.error));
    }
    return make('div', { class: 'answer' }, parts.concat(side));
  }

  function makeSQL(pieces, kind) {
    if (!pieces.join('').trim()) { return make('p', { class: 'soft' }, 'no SQL'); }
    // By turns what both queries have, and what only this one has.
    return make('pre', {}, pieces.map(function (piece, i) {
      return i % 2 ? make('mark', { class: kind }, piece) : piece;
    }));
  }

  function makeResult(number) {
    const result = data.results[number];
    if (result.error !== undefined) { return make('pre', { class: 'wrong' }, result.error); }
    const cells = function (tag, values) {
      return make('tr', {}, values.map(function (value) { return make(tag, {}, value); }));
    };
    const size = [
      result.numRows.toLocaleString('en') + (result.numRows === 1 ? ' row' : ' rows') +
        (result.numRows > result.rows.length ? ', first ' + result.rows.length + ' shown' : ''),
      result.numColumns > result.columns.length
        ? result.numColumns + ' columns, first ' + result.columns.length + ' shown' : ''
    ].filter(Boolean).join('; ');
    return make('div', {}, [
      make('div', { class: 'scroll' }, make('table', { class: 'result' }, [
        make('thead', {}, cells('th', result.columns)),
        make('tbody', {}, result.rows.map(function (row) { return cells('td', row); }))
      ])),
      make('p', { class: 'soft' }, size)
    ]);
  }

  // ---- ways into the list

  function openLinked() {
    const match = /^#q(\d+)$/.exec(location.hash);
    if (!match || !data.questions[match[1] - 1]) { return; }
    if (!byId('q' + match[1])) { choose({}); }
    while (!byId('q' + match[1])) { showMore(); }
    byId('q' + match[1]).open = true;
    byId('q' + match[1]).scrollIntoView();
  }

  function linkPlots() {
    document.querySelectorAll('table[data-filter] th[data-value]').forEach(function (cell) {
      const name = cell.closest('table').dataset.filter;
      const button = make('button', {
        type: 'button', class: 'link', title: 'show these questions'
      }, Array.from(cell.childNodes));
      button.addEventListener('click', function () {
        const values = { show: name === 'class' ? 'all' : 'failed' };
        values[name] = cell.dataset.value;
        choose(values);
        byId('h-questions').scrollIntoView();
      });
      cell.append(button);
    });
  }

  buildFilters();
  linkPlots();
  byId('more').addEventListener('click', showMore);
  byId('browser').hidden = false;
  choose({ show: count(SHOWS[1][2]) ? 'failed' : 'all' });
  openLinked();
  window.addEventListener('hashchange', openLinked);
}());
