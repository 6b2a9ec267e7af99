//! A service's configuration file, owned whole.
//!
//! The packaged files are up to 380 KB of comments that every process parses at its start; what
//! stands in them beside our values differs between packages. So the file is ours from the first
//! line to the last: what is not declared is not there.

use crate::engine::resource::{Input, Resource, Script, Verdict};
use crate::secret::Secret;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub enum Value {
    Plain(String),
    /// A secret, or a text with one in it (a database URL): hidden as a whole.
    Secret(Secret),
}

impl Value {
    fn text(&self) -> &str {
        match self {
            Value::Plain(s) => s,
            Value::Secret(s) => s.reveal(),
        }
    }
    fn shown(&self) -> &str {
        match self {
            Value::Plain(s) => s,
            Value::Secret(_) => "[secret]",
        }
    }
}

impl From<&str> for Value {
    fn from(s: &str) -> Value {
        Value::Plain(s.into())
    }
}
impl From<String> for Value {
    fn from(s: String) -> Value {
        Value::Plain(s)
    }
}
impl From<&Secret> for Value {
    fn from(s: &Secret) -> Value {
        Value::Secret(s.clone())
    }
}
impl From<Secret> for Value {
    fn from(s: Secret) -> Value {
        Value::Secret(s)
    }
}

/// An INI file: sections in order, keys in order.
#[derive(Clone, Debug)]
pub struct Conf {
    pub path: String,
    pub owner: &'static str,
    pub group: &'static str,
    pub mode: u32,
    pub sections: Vec<(String, Vec<(String, Value)>)>,
}

type Parsed = BTreeMap<(String, String), Vec<String>>;

impl Conf {
    /// A file that root writes and the service's group reads: 0640.
    pub fn new(path: &str, group: &'static str) -> Conf {
        Conf { path: path.into(), owner: "root", group, mode: 0o640, sections: vec![] }
    }

    /// Adds keys to a section, which is made at first mention.
    pub fn section<V: Into<Value>>(
        mut self,
        name: &str,
        keys: impl IntoIterator<Item = (&'static str, V)>,
    ) -> Conf {
        let keys = keys.into_iter().map(|(k, v)| (k.to_owned(), v.into()));
        match self.sections.iter_mut().find(|(n, _)| n == name) {
            Some((_, have)) => have.extend(keys),
            None => self.sections.push((name.into(), keys.collect())),
        }
        self
    }

    fn render(&self) -> String {
        let mut out = String::from("# Written by stackproof: changes by hand are undone.\n");
        for (name, keys) in &self.sections {
            out += &format!("\n[{name}]\n");
            for (key, value) in keys {
                out += &format!("{key} = {}\n", value.text());
            }
        }
        out
    }

    fn access(&self) -> String {
        format!("{:o} {} {}", self.mode, self.owner, self.group)
    }

    /// Repeated keys count: oslo.config reads them as lists, and uwsgi as several settings.
    fn parse(text: &str) -> Parsed {
        let mut section = String::new();
        let mut parsed = Parsed::new();
        for line in text.lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = name.to_owned();
                continue;
            }
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            parsed
                .entry((section.clone(), key.trim().to_owned()))
                .or_default()
                .push(value.trim().to_owned());
        }
        parsed
    }
}

impl Resource for Conf {
    fn id(&self) -> String {
        format!("file {}", self.path)
    }

    fn probe(&self) -> Script {
        Script {
            shell: format!(
                "if [ -f {p} ]; then stat -c '%a %U %G' {p}; cat {p}; else echo absent; fi\n",
                p = self.path
            ),
            inputs: vec![],
        }
    }

    fn judge(&self, seen: &str) -> Verdict {
        let (access, text) = seen.split_once('\n').unwrap_or((seen, ""));
        if access == "absent" {
            return Verdict::Differs(vec!["absent".into()]);
        }
        let mut differs = Vec::new();
        if access != self.access() {
            differs.push(format!("access: {access} -> {}", self.access()));
        }
        let have = Self::parse(text);
        let want = Self::parse(&self.render());
        // Of a repeated key all is hidden where one value is.
        let shown = |section: &str, key: &str| {
            let sections = self.sections.iter().filter(|(n, _)| n == section);
            let values = sections.flat_map(|(_, keys)| keys).filter(|(k, _)| k == key);
            let values: Vec<&Value> = values.map(|(_, v)| v).collect();
            let secret = values.iter().find(|v| matches!(v, Value::Secret(_)));
            secret.or(values.first()).map_or("", |v| v.shown())
        };
        for (at @ (section, key), values) in &want {
            let new = shown(section, key);
            match have.get(at) {
                Some(same) if same == values => {}
                // What stands there now may be an old secret.
                Some(_) if new == "[secret]" => {
                    differs.push(format!("[{section}] {key}: differs"));
                }
                Some(old) => {
                    differs.push(format!("[{section}] {key}: {} -> {new}", old.join(", ")))
                }
                None => differs.push(format!("[{section}] {key}: absent -> {new}")),
            }
        }
        for (section, key) in have.keys().filter(|at| !want.contains_key(at)) {
            differs.push(format!("[{section}] {key}: not declared"));
        }
        if differs.is_empty() { Verdict::Same } else { Verdict::Differs(differs) }
    }

    /// Written beside and renamed: no service ever reads half a file.
    fn apply(&self, _seen: &str) -> Script {
        Script {
            shell: format!(
                "install -D -m {:o} -o {} -g {} \"$IN/conf\" {p}.stackproof && mv -f {p}.stackproof {p}\n",
                self.mode,
                self.owner,
                self.group,
                p = self.path
            ),
            inputs: vec![("conf".into(), Input::SecretBytes(self.render().into_bytes()))],
        }
    }

    fn writes(&self) -> Vec<String> {
        vec![self.path.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf() -> Conf {
        let secret = Secret::new("0123456789abcdef");
        Conf::new("/etc/nova/nova.conf", "nova")
            .section("DEFAULT", [("my_ip", "192.0.2.7")])
            .section("neutron", [("metadata_proxy_shared_secret", &secret)])
    }

    fn seen(text: &str) -> String {
        format!("640 root nova\n{text}")
    }

    #[test]
    fn its_own_rendering_is_the_declared_state() {
        assert_eq!(conf().judge(&seen(&conf().render())), Verdict::Same);
    }

    #[test]
    fn a_value_changed_by_hand_an_added_key_and_open_access_are_named() {
        let text = conf().render().replace("192.0.2.7", "192.0.2.2") + "debug = true\n";
        let Verdict::Differs(lines) = conf().judge(&format!("644 root nova\n{text}")) else {
            panic!("must differ")
        };
        assert_eq!(
            lines,
            [
                "access: 644 root nova -> 640 root nova",
                "[DEFAULT] my_ip: 192.0.2.2 -> 192.0.2.7",
                "[neutron] debug: not declared",
            ]
        );
    }

    #[test]
    fn no_secret_is_shown_neither_the_old_nor_the_new() {
        let text = conf().render().replace("0123456789abcdef", "fedcba9876543210");
        let Verdict::Differs(lines) = conf().judge(&seen(&text)) else { panic!("must differ") };
        assert_eq!(lines, ["[neutron] metadata_proxy_shared_secret: differs"]);
        let debug = format!("{:?}", conf());
        assert!(!debug.contains("0123456789abcdef"));
    }

    #[test]
    fn an_absent_file_differs() {
        assert_eq!(conf().judge("absent\n"), Verdict::Differs(vec!["absent".into()]));
    }
}
