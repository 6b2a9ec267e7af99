//! INI files in oslo.config's dialect, edited in place: everything that is not asked for (comments,
//! blank lines, order, other keys) stays byte for byte.
//!
//! The dialect: `key = value` or `key: value`; a line that begins with a blank continues the value
//! above it; `#` and `;` begin comments; a section may appear several times and is then one; a key
//! that appears several times is a list or, for a plain option, its last value.

/// The lines of one file.
#[derive(Clone, Debug)]
pub struct Document {
    /// Each with its line end, if it has one.
    lines: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Section(&'a str),
    /// Key and first line of the value.
    Entry(&'a str, &'a str),
    /// Belongs to the entry above.
    Continuation(&'a str),
    /// `#key = value`: the place where packaged files show a default.
    CommentedEntry(&'a str),
    Other,
}

fn classify(line: &str) -> Line<'_> {
    let text = line.trim_end();
    match text.chars().next() {
        None => Line::Other,
        Some('#' | ';') => {
            let inner = text.trim_start_matches(['#', ';']);
            match inner.split_once('=') {
                // Prose has blanks before its `=`; `# key = value` is an example inside prose.
                Some((key, _)) if !inner.starts_with(' ') && !key.trim_end().contains(' ') => {
                    Line::CommentedEntry(key.trim_end())
                }
                _ => Line::Other,
            }
        }
        Some('[') => match text[1..].split_once(']') {
            Some((name, _)) => Line::Section(name.trim()),
            None => Line::Other,
        },
        Some(c) if c.is_whitespace() => Line::Continuation(text.trim()),
        Some(_) => match text.find(['=', ':']) {
            Some(at) => Line::Entry(text[..at].trim_end(), text[at + 1..].trim()),
            // A flag without a value (my.cnf's skip-name-resolve).
            None => Line::Entry(text, ""),
        },
    }
}

/// Where one entry stands: its first line, and the line after its last.
type Span = (usize, usize);

impl Document {
    pub fn parse(text: &str) -> Document {
        Document { lines: text.split_inclusive('\n').map(str::to_owned).collect() }
    }

    /// All values of a key, in order; continuation lines are joined by a newline, as oslo does.
    pub fn values(&self, section: &str, key: &str) -> Vec<String> {
        self.spans(section, key).into_iter().map(|span| self.value(span)).collect()
    }

    fn value(&self, (from, to): Span) -> String {
        let mut value = String::new();
        for line in &self.lines[from..to] {
            match classify(line) {
                Line::Entry(_, first) => value.push_str(first),
                Line::Continuation(more) => {
                    value.push('\n');
                    value.push_str(more);
                }
                _ => {}
            }
        }
        value
    }

    /// Every line with the section that it is in; lines above the first header are in none.
    fn walk(&self) -> impl Iterator<Item = (usize, Option<&str>, Line<'_>)> {
        let mut section = None;
        self.lines.iter().enumerate().map(move |(i, line)| {
            let line = classify(line);
            if let Line::Section(name) = line {
                section = Some(name);
            }
            (i, section, line)
        })
    }

    fn spans(&self, section: &str, key: &str) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        let mut open = false;
        for (i, of, line) in self.walk() {
            match line {
                Line::Entry(name, _) => {
                    open = of == Some(section) && name == key;
                    if open {
                        spans.push((i, i + 1));
                    }
                }
                Line::Continuation(_) if open => {
                    if let Some(last) = spans.last_mut() {
                        last.1 = i + 1;
                    }
                }
                Line::Continuation(_) | Line::CommentedEntry(_) => {}
                Line::Section(_) => open = false,
                // A blank line ends a value; a comment within it does not.
                Line::Other => open = open && !self.lines[i].trim().is_empty(),
            }
        }
        spans
    }

    /// Makes `value` the key's only value: in the place of the first one there is, else under the
    /// commented default, else at the top of the section, else in a new section at the end.
    pub fn set(&mut self, section: &str, key: &str, value: &str) {
        let mut lines = Vec::new();
        for (i, part) in value.lines().enumerate() {
            match i {
                0 => lines.push(format!("{key} = {part}\n")),
                _ => lines.push(format!("    {part}\n")),
            }
        }
        if lines.is_empty() {
            lines.push(format!("{key} =\n"));
        }
        let spans = self.spans(section, key);
        if let Some(&(first, _)) = spans.first() {
            self.remove(&spans);
            self.lines.splice(first..first, lines);
            return;
        }
        let at = self.default_place(section, key).or_else(|| {
            self.walk().find(|(_, _, l)| *l == Line::Section(section)).map(|(i, ..)| i + 1)
        });
        self.end_last_line();
        match at {
            Some(at) => {
                self.lines.splice(at..at, lines);
            }
            None => {
                if self.lines.last().is_some_and(|l| !l.trim().is_empty()) {
                    self.lines.push("\n".into());
                }
                self.lines.push(format!("[{section}]\n"));
                self.lines.extend(lines);
            }
        }
    }

    pub fn unset(&mut self, section: &str, key: &str) {
        let spans = self.spans(section, key);
        self.remove(&spans);
    }

    fn default_place(&self, section: &str, key: &str) -> Option<usize> {
        let (i, ..) = self
            .walk()
            .find(|(_, of, line)| *of == Some(section) && *line == Line::CommentedEntry(key))?;
        // Never between an entry and its continuation.
        let splits =
            self.lines.get(i + 1).is_some_and(|l| matches!(classify(l), Line::Continuation(_)));
        (!splits).then_some(i + 1)
    }

    fn remove(&mut self, spans: &[Span]) {
        for &(from, to) in spans.iter().rev() {
            self.lines.drain(from..to);
        }
    }

    fn end_last_line(&mut self) {
        if let Some(last) = self.lines.last_mut()
            && !last.ends_with('\n')
        {
            last.push('\n');
        }
    }
}

impl std::fmt::Display for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.lines.iter().try_for_each(|l| f.write_str(l))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKAGED: &str = "\
# Prose about my_ip = something.
[DEFAULT]
#my_ip = <host_ipv4>
log_dir = /var/log/nova ; not a comment in oslo

[database]
connection = sqlite:////var/lib/nova/nova.sqlite
multi = one
  two
  # inside
  three

other: colon
[DEFAULT]
debug = true
";

    fn edit(text: &str, f: impl FnOnce(&mut Document)) -> String {
        let mut d = Document::parse(text);
        f(&mut d);
        d.to_string()
    }

    #[test]
    fn parsing_and_printing_changes_no_byte() {
        for text in [PACKAGED, "", "no newline", "\n\n[x]\r\na = 1\r\n", "[broken\n= 3\n :\n"] {
            assert_eq!(Document::parse(text).to_string(), text);
        }
    }

    #[test]
    fn values_are_read_across_duplicate_sections_and_continuations() {
        let d = Document::parse(PACKAGED);
        assert_eq!(d.values("DEFAULT", "debug"), ["true"]);
        assert_eq!(d.values("DEFAULT", "my_ip"), Vec::<String>::new());
        assert_eq!(d.values("database", "multi"), ["one\ntwo\n# inside\nthree"]);
        assert_eq!(d.values("database", "other"), ["colon"]);
        assert_eq!(d.values("database", "debug"), Vec::<String>::new());
    }

    #[test]
    fn a_value_is_replaced_where_it_stands_and_nothing_else_moves() {
        let out = edit(PACKAGED, |d| d.set("database", "connection", "mysql://x"));
        assert_eq!(out, PACKAGED.replace("sqlite:////var/lib/nova/nova.sqlite", "mysql://x"));
    }

    #[test]
    fn a_new_value_goes_under_its_commented_default() {
        let out = edit(PACKAGED, |d| d.set("DEFAULT", "my_ip", "192.0.2.1"));
        assert!(out.contains("#my_ip = <host_ipv4>\nmy_ip = 192.0.2.1\nlog_dir"), "{out}");
    }

    #[test]
    fn a_new_value_without_default_goes_to_the_top_of_its_section() {
        let out = edit(PACKAGED, |d| d.set("database", "new", "1"));
        assert!(out.contains("[database]\nnew = 1\nconnection"), "{out}");
    }

    #[test]
    fn a_new_section_goes_to_the_end_even_without_a_final_newline() {
        assert_eq!(edit("[a]\nx = 1", |d| d.set("b", "y", "2")), "[a]\nx = 1\n\n[b]\ny = 2\n");
        assert_eq!(edit("", |d| d.set("b", "y", "")), "[b]\ny =\n");
        assert_eq!(edit("[a]", |d| d.set("a", "y", "2")), "[a]\ny = 2\n");
    }

    #[test]
    fn duplicates_become_one_value() {
        let out = edit("[a]\nx = 1\ny = 2\n[a]\nx = 3\n", |d| d.set("a", "x", "4"));
        assert_eq!(out, "[a]\nx = 4\ny = 2\n[a]\n");
    }

    #[test]
    fn unset_takes_the_continuation_with_it() {
        let out = edit(PACKAGED, |d| d.unset("database", "multi"));
        assert!(!out.contains("two") && !out.contains("three"), "{out}");
        assert!(out.contains("nova.sqlite\n\nother: colon"), "{out}");
    }

    #[test]
    fn a_value_of_several_lines_reads_back_as_it_was_set() {
        let mut d = Document::parse("");
        d.set("a", "x", "one\ntwo");
        assert_eq!(d.to_string(), "[a]\nx = one\n    two\n");
        assert_eq!(d.values("a", "x"), ["one\ntwo"]);
    }

    #[test]
    fn setting_twice_is_setting_once() {
        let sets = [("DEFAULT", "my_ip", "1"), ("database", "multi", "m"), ("new", "k", "v")];
        let once = edit(PACKAGED, |d| sets.iter().for_each(|(s, k, v)| d.set(s, k, v)));
        let twice = edit(&once, |d| sets.iter().for_each(|(s, k, v)| d.set(s, k, v)));
        assert_eq!(once, twice);
        for (s, k, v) in sets {
            assert_eq!(Document::parse(&once).values(s, k), [v]);
        }
    }
}
