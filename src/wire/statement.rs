//! The first words of a statement, and nothing else of SQL.
