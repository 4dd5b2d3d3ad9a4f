-- The tables that the cases beside this file ask.
CREATE TABLE singer (
    id INTEGER PRIMARY KEY,
    name TEXT,
    country TEXT,
    age INTEGER
);
CREATE TABLE song (
    song_id INTEGER PRIMARY KEY,
    title TEXT,
    year INTEGER,
    singer_id INTEGER REFERENCES singer (id)
);
CREATE TABLE stadium (
    stadium_id INTEGER PRIMARY KEY,
    name TEXT,
    capacity INTEGER
);
CREATE TABLE concert (
    concert_id INTEGER PRIMARY KEY,
    theme TEXT,
    held DATE,
    stadium_id INTEGER REFERENCES stadium (stadium_id)
);
CREATE TABLE singer_in_concert (
    concert_id INTEGER REFERENCES concert (concert_id),
    singer_id INTEGER REFERENCES singer (id)
);
