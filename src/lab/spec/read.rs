//! Reads TOML strictly: every key is known, every value has its type, and every complaint names
//! the line.

use crate::error::{Error, Result};
use std::path::Path;
use std::str::FromStr;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The text that spans point into.
pub(super) struct Source<'a> {
    pub file: &'a Path,
    pub text: &'a str,
}

impl Source<'_> {
    /// The line (from 1) of a byte offset.
    pub fn line(&self, offset: usize) -> usize {
        let upto = &self.text.as_bytes()[..offset.min(self.text.len())];
        upto.iter().filter(|&&b| b == b'\n').count() + 1
    }
    pub fn error(&self, line: usize, message: impl Into<String>) -> Error {
        Error::input(message).at(self.file, Some(line))
    }
}

pub(super) fn parse<'a>(source: &Source<'a>) -> Result<Spanned<DeTable<'a>>> {
    DeTable::parse(source.text).map_err(|e| {
        let line = e.span().map_or(1, |s| source.line(s.start));
        source.error(line, e.message().trim()).hint("this is not valid TOML; see https://toml.io")
    })
}

/// One table being read. `what` names it in complaints: `node openstack1`.
pub(super) struct Table<'s, 't> {
    source: &'s Source<'s>,
    table: &'t DeTable<'t>,
    pub line: usize,
    what: String,
}

/// A value and the line that it stands on.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<T> {
    pub value: T,
    pub line: usize,
}

impl<'s, 't> Table<'s, 't> {
    pub fn root(source: &'s Source<'s>, table: &'t Spanned<DeTable<'t>>) -> Self {
        Table { source, table: table.get_ref(), line: 1, what: "a lab file".into() }
    }

    /// Refuses every key that is not in `keys`, and suggests the one that was meant.
    pub fn only(&self, keys: &[&str]) -> Result<()> {
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if keys.contains(&name) {
                continue;
            }
            let hint = match nearest(name, keys) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("{} knows: {}", self.what, keys.join(", ")),
            };
            let line = self.source.line(key.span().start);
            let message = format!("unknown key `{name}` in {}", self.what);
            return Err(self.source.error(line, message).hint(hint));
        }
        Ok(())
    }

    fn missing(&self, key: &str, example: &str) -> Error {
        self.source
            .error(self.line, format!("{} has no `{key}`", self.what))
            .hint(format!("add a line such as: {key} = {example}"))
    }

    fn get(&self, key: &str) -> Option<At<&'t DeValue<'t>>> {
        let (_, value) = self.table.iter().find(|(k, _)| k.get_ref() == key)?;
        Some(At { value: value.get_ref(), line: self.source.line(value.span().start) })
    }

    fn wrong(&self, key: &str, found: At<&DeValue>, wanted: &str) -> Error {
        let kind = found.value.type_str();
        let message = format!("`{key}` of {} must be {wanted}, not a TOML {kind}", self.what);
        self.source.error(found.line, message)
    }

    /// A complaint about a value that has the right type.
    pub fn bad(&self, line: usize, message: impl Into<String>) -> Error {
        self.source.error(line, message)
    }

    pub fn opt_str(&self, key: &str) -> Result<Option<At<&'t str>>> {
        let Some(found) = self.get(key) else { return Ok(None) };
        match found.value.as_str() {
            Some(value) => Ok(Some(At { value, line: found.line })),
            None => Err(self.wrong(key, found, "a string")),
        }
    }
    pub fn str(&self, key: &str, example: &str) -> Result<At<&'t str>> {
        self.opt_str(key)?.ok_or_else(|| self.missing(key, example))
    }

    /// A string that parses as `T`; `wanted` says what it must be.
    pub fn opt_parsed<T: FromStr>(&self, key: &str, wanted: &str) -> Result<Option<At<T>>> {
        let Some(found) = self.opt_str(key)? else { return Ok(None) };
        match found.value.parse() {
            Ok(value) => Ok(Some(At { value, line: found.line })),
            Err(_) => {
                let said = found.value;
                let message = format!("`{key}` of {} must be {wanted}, not `{said}`", self.what);
                Err(self.source.error(found.line, message))
            }
        }
    }
    pub fn parsed<T: FromStr>(&self, key: &str, wanted: &str, example: &str) -> Result<At<T>> {
        self.opt_parsed(key, wanted)?.ok_or_else(|| self.missing(key, example))
    }

    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        let Some(found) = self.get(key) else { return Ok(None) };
        found.value.as_bool().map(Some).ok_or_else(|| self.wrong(key, found, "true or false"))
    }

    /// A whole number within `range`.
    pub fn opt_number(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<u32>,
    ) -> Result<Option<At<u32>>> {
        let Some(found) = self.get(key) else { return Ok(None) };
        let (low, high) = (range.start(), range.end());
        let wanted = format!("a whole number from {low} to {high}");
        let Some(integer) = found.value.as_integer() else {
            return Err(self.wrong(key, found, &wanted));
        };
        match u32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(value) if range.contains(&value) => Ok(Some(At { value, line: found.line })),
            _ => {
                let message = format!("`{key}` of {} must be {wanted}, not {integer}", self.what);
                Err(self.source.error(found.line, message))
            }
        }
    }
    pub fn number(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<u32>,
        example: &str,
    ) -> Result<At<u32>> {
        self.opt_number(key, range)?.ok_or_else(|| self.missing(key, example))
    }

    pub fn strings(&self, key: &str) -> Result<Vec<At<&'t str>>> {
        let Some(found) = self.get(key) else { return Ok(Vec::new()) };
        let Some(array) = found.value.as_array() else {
            return Err(self.wrong(key, found, "a list of strings"));
        };
        let string = |item: &'t Spanned<DeValue<'t>>| {
            let line = self.source.line(item.span().start);
            match item.get_ref().as_str() {
                Some(value) => Ok(At { value, line }),
                None => {
                    let item = At { value: item.get_ref(), line };
                    Err(self.wrong(key, item, "a list of strings"))
                }
            }
        };
        array.iter().map(string).collect()
    }

    /// The tables `[KEY.NAME]`, in the order of the file. `kind` names one of them: `node`.
    pub fn named_tables(&self, key: &str, kind: &str) -> Result<Vec<(String, Table<'s, 't>)>> {
        let Some(found) = self.get(key) else { return Ok(Vec::new()) };
        let Some(tables) = found.value.as_table() else {
            return Err(self.wrong(key, found, "a table of tables"));
        };
        let mut out = Vec::new();
        for (name, value) in tables {
            let line = self.source.line(name.span().start);
            let value = At { value: value.get_ref(), line };
            let table = value.value.as_table().ok_or_else(|| {
                self.wrong(name.get_ref(), value, &format!("a table, [{key}.NAME]"))
            })?;
            let what = format!("{kind} {}", name.get_ref());
            out.push((name.span().start, name.get_ref().to_string(), table, line, what));
        }
        out.sort_by_key(|(start, ..)| *start);
        let table =
            |(_, name, table, line, what)| (name, Table { source: self.source, table, line, what });
        Ok(out.into_iter().map(table).collect())
    }

    /// The tables `[[…KEY]]`. `kind` names one of them: `NIC`.
    pub fn list_of_tables(&self, key: &str, kind: &str) -> Result<Vec<Table<'s, 't>>> {
        let Some(found) = self.get(key) else { return Ok(Vec::new()) };
        let Some(array) = found.value.as_array() else {
            return Err(self.wrong(key, found, "a list of tables"));
        };
        let table = |(i, item): (usize, &'t Spanned<DeValue<'t>>)| {
            let line = self.source.line(item.span().start);
            let table = item.get_ref().as_table().ok_or_else(|| {
                self.wrong(key, At { value: item.get_ref(), line }, "a list of tables")
            })?;
            let what = format!("{kind} {} of {}", i + 1, self.what);
            Ok(Table { source: self.source, table, line, what })
        };
        array.iter().enumerate().map(table).collect()
    }
}

/// The word of `known` that `said` was probably meant to be.
pub(super) fn nearest<'k>(said: &str, known: &[&'k str]) -> Option<&'k str> {
    let (distance, word) = known.iter().map(|k| (distance(said, k), *k)).min()?;
    // One slip in short words, two in long ones: more would suggest unrelated words.
    let slips = if said.len() <= 4 { 1 } else { 2 };
    (distance <= slips).then_some(word)
}

/// Edits between two words, an exchange of neighbours counting as one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j - 1] + same).min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_the_key_and_an_unrelated_word_does_not() {
        let keys = ["memory", "cpus", "image"];
        assert_eq!(nearest("memroy", &keys), Some("memory"));
        assert_eq!(nearest("cpu", &keys), Some("cpus"));
        assert_eq!(nearest("colour", &keys), None);
        assert_eq!(nearest("x", &[]), None);
    }

    #[test]
    fn lines_count_from_one() {
        let source = Source { file: Path::new("x"), text: "a\nb\n\nc" };
        assert_eq!([0, 1, 2, 5, 99].map(|o| source.line(o)), [1, 1, 2, 4, 4]);
    }
}
