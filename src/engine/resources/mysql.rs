//! Databases and accounts of MariaDB, as root over its unix socket.

use crate::engine::resource::{Input, Resource, Script, SharedProbe, Verdict};
use crate::secret::Secret;
use sha1::{Digest, Sha1};
use std::fmt::Write;

/// A database.
#[derive(Clone, Debug)]
pub struct Database {
    name: String,
}

impl Database {
    pub fn new(name: impl Into<String>) -> Database {
        Database { name: name.into() }
    }
}

/// An account with its password and all privileges on some databases. The password is compared by
/// its hash and set by its hash: the plain text never reaches the node.
#[derive(Clone, Debug)]
pub struct Account {
    user: String,
    host: String,
    password: Secret,
    databases: Vec<String>,
}

impl Account {
    /// `host` as MariaDB has it: `localhost`, `%`.
    pub fn new(user: impl Into<String>, host: impl Into<String>, password: Secret) -> Account {
        Account { user: user.into(), host: host.into(), password, databases: Vec::new() }
    }
    /// All privileges on this database.
    pub fn grant(mut self, database: impl Into<String>) -> Account {
        self.databases.push(database.into());
        self
    }
    fn who(&self) -> String {
        format!("{}@{}", text(&self.user), text(&self.host))
    }
    /// `mysql_native_password`'s hash: what PyMySQL logs in against.
    fn hash(&self) -> String {
        let once = Sha1::digest(self.password.reveal().as_bytes());
        let mut out = String::from("*");
        Sha1::digest(once).iter().for_each(|b| {
            let _ = write!(out, "{b:02X}");
        });
        out
    }
    fn has_grant(database: &str, seen: &str) -> bool {
        seen.lines().any(|l| {
            l.strip_prefix("GRANT ALL PRIVILEGES ON ")
                .and_then(|l| l.split_once(" TO "))
                .is_some_and(|(on, _)| on.replace('\\', "") == format!("`{database}`.*"))
        })
    }
}

/// A string literal of SQL.
fn text(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

fn name(value: &str) -> String {
    format!("`{}`", value.replace('`', "``"))
}

/// One client for all databases and accounts. Subjects are the SQL to ask with.
static MARIADB: SharedProbe = SharedProbe { name: "mariadb", script, split };

const RUN: &str = "m=mariadb\ncommand -v mariadb >/dev/null || m=mysql\n";

fn script(subjects: &[&str]) -> Script {
    let mut sql = String::from("SELECT '@up';\n");
    for (i, subject) in subjects.iter().enumerate() {
        let _ = writeln!(sql, "SELECT '@{i}';\n{subject};");
    }
    // Asking for an account that is absent is an error: --force goes on.
    Script::new(format!(
        "{RUN}$m --no-defaults -u root --force -N -B -r <\"$IN/sql\" 2>/dev/null\ntrue"
    ))
    .input("sql", Input::Plain(sql.into_bytes()))
}

fn split(printed: &[u8], subjects: &[&str]) -> Vec<String> {
    let printed = String::from_utf8_lossy(printed);
    let mut out = vec![String::from("down\n"); subjects.len()];
    let mut at: Option<usize> = None;
    for line in printed.lines() {
        if line == "@up" {
            out.iter_mut().for_each(|t| t.clear());
        } else if let Some(i) = line.strip_prefix('@').and_then(|i| i.parse().ok()) {
            at = Some(i);
        } else if let Some(text) = at.and_then(|i| out.get_mut(i)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    out
}

fn run(sql: String) -> Script {
    Script::new(format!("{RUN}$m --no-defaults -u root <\"$IN/sql\""))
        .input("sql", Input::SecretBytes(sql.into_bytes()))
}

const DOWN: &str = "down\n";

impl Resource for Database {
    fn id(&self) -> String {
        format!("database {}", self.name)
    }
    fn shared(&self) -> Option<(&'static SharedProbe, String)> {
        let sql = format!(
            "SELECT schema_name FROM information_schema.schemata WHERE schema_name = {}",
            text(&self.name)
        );
        Some((&MARIADB, sql))
    }
    fn judge(&self, seen: &str) -> Verdict {
        Verdict::from_lines(match seen {
            DOWN => vec!["MariaDB does not answer".into()],
            _ if seen.trim() == self.name => vec![],
            _ => vec!["absent".into()],
        })
    }
    fn apply(&self, _seen: &str) -> Script {
        run(format!("CREATE DATABASE IF NOT EXISTS {};\n", name(&self.name)))
    }
    fn quick(&self) -> bool {
        true
    }
}

impl Resource for Account {
    fn id(&self) -> String {
        format!("account {}@{}", self.user, self.host)
    }
    fn shared(&self) -> Option<(&'static SharedProbe, String)> {
        Some((&MARIADB, format!("SHOW GRANTS FOR {}", self.who())))
    }
    fn judge(&self, seen: &str) -> Verdict {
        if seen == DOWN {
            return Verdict::Differs(vec!["MariaDB does not answer".into()]);
        }
        if seen.is_empty() {
            return Verdict::Differs(vec!["absent".into()]);
        }
        let mut lines = Vec::new();
        if !seen.contains(&format!("PASSWORD '{}'", self.hash())) {
            lines.push("password: differs".into());
        }
        for database in &self.databases {
            if !Self::has_grant(database, seen) {
                lines.push(format!("no grant on {database}"));
            }
        }
        Verdict::from_lines(lines)
    }
    fn apply(&self, _seen: &str) -> Script {
        let (who, hash) = (self.who(), self.hash());
        let mut sql = format!(
            "CREATE USER IF NOT EXISTS {who} IDENTIFIED BY PASSWORD '{hash}';\n\
             ALTER USER {who} IDENTIFIED BY PASSWORD '{hash}';\n"
        );
        for database in &self.databases {
            let _ = writeln!(sql, "GRANT ALL PRIVILEGES ON {}.* TO {who};", name(database));
        }
        run(sql)
    }
    fn quick(&self) -> bool {
        true
    }
}
