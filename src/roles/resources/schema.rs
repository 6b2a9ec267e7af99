//! The schema of a service's database, at the revision that the installed package wants.
//!
//! The services' own `db version` commands cost 10 to 20 s each under emulation. Alembic's state is
//! two facts that a shell can read: the heads among the migration files, and the rows of
//! `alembic_version`.

use super::as_user;
use crate::engine::resource::{Resource, Script, Verdict};

#[derive(Clone, Debug)]
pub enum Heads {
    /// `EXPAND_HEAD` and `CONTRACT_HEAD` beside the migrations name the heads: all must be there.
    Named { dir: &'static str },
    /// The revisions that no other migration comes after. Every row of the database must be one of
    /// them, and there must be a row (a head that another head depends on has no row of its own).
    Derived { dir: &'static str },
}

#[derive(Clone, Debug)]
pub struct Schema {
    pub database: &'static str,
    pub heads: Heads,
    /// The command that brings the schema up to date, and the user who runs it.
    pub sync: &'static str,
    pub user: &'static str,
}

impl Schema {
    fn parse(seen: &str) -> (Vec<&str>, Vec<&str>) {
        let words = |key: &str| {
            seen.lines()
                .filter_map(|l| l.strip_prefix(key))
                .flat_map(str::split_whitespace)
                .collect::<Vec<_>>()
        };
        (words("want "), words("have "))
    }
}

impl Resource for Schema {
    fn id(&self) -> String {
        format!("schema {}", self.database)
    }

    fn probe(&self) -> Script {
        let want = match self.heads {
            Heads::Named { dir } => format!("cat {dir}/EXPAND_HEAD {dir}/CONTRACT_HEAD"),
            // A revision, unless it stands in some file's down_revision (which may be a tuple over
            // several lines: everything quoted up to the next assignment counts).
            Heads::Derived { dir } => format!(
                r#"find {dir} -name '*.py' -exec cat {{}} + | awk '
  function quoted(s,  v) {{ while (match(s, /["'\''][0-9A-Za-z_]+["'\'']/)) {{ v = substr(s, RSTART+1, RLENGTH-2); down[v] = 1; s = substr(s, RSTART+RLENGTH) }} }}
  /^revision *(:[^=]*)?=/ {{ match($0, /["'\''][0-9A-Za-z_]+["'\'']/); rev[substr($0, RSTART+1, RLENGTH-2)] = 1; open = 0; next }}
  /^down_revision *(:[^=]*)?=/ {{ s = $0; sub(/^[^=]*=/, "", s); quoted(s); open = ($0 ~ /\($/); next }}
  open {{ quoted($0); if ($0 ~ /\)/) open = 0 }}
  END {{ for (r in rev) if (!(r in down)) print r }}'"#
            ),
        };
        Script {
            shell: format!(
                "echo want $({want})\n\
                 echo have $(mariadb -N -B -e 'SELECT version_num FROM alembic_version' {} 2>/dev/null)\n",
                self.database
            ),
            inputs: vec![],
        }
    }

    fn judge(&self, seen: &str) -> Verdict {
        let (want, have) = Self::parse(seen);
        if want.is_empty() {
            return Verdict::Differs(vec![format!(
                "no migrations found for {}: is its package installed?",
                self.database
            )]);
        }
        let same = match self.heads {
            Heads::Named { .. } => {
                want.iter().all(|w| have.contains(w)) && have.len() == want.len()
            }
            Heads::Derived { .. } => !have.is_empty() && have.iter().all(|h| want.contains(h)),
        };
        if same {
            return Verdict::Same;
        }
        let have = if have.is_empty() { "nothing".into() } else { have.join(" ") };
        Verdict::Differs(vec![format!("revision: {have} -> {}", want.join(" "))])
    }

    fn apply(&self, _seen: &str) -> Script {
        Script { shell: format!("{} {}\n", as_user(self.user), self.sync), inputs: vec![] }
    }

    fn patience(&self) -> u64 {
        60
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn schema(heads: Heads) -> Schema {
        Schema { database: "nova", heads, sync: "nova-manage db sync", user: "nova" }
    }

    #[test]
    fn a_database_without_revisions_or_at_an_old_one_differs() {
        let s = schema(Heads::Derived { dir: "/x" });
        assert_eq!(s.judge("want b2\nhave b2\n"), Verdict::Same);
        assert_eq!(
            s.judge("want b2\nhave\n"),
            Verdict::Differs(vec!["revision: nothing -> b2".into()])
        );
        assert!(matches!(s.judge("want b2\nhave a1\n"), Verdict::Differs(_)));
        assert!(matches!(s.judge("want\nhave b2\n"), Verdict::Differs(_)));
    }

    #[test]
    fn named_heads_must_all_be_there() {
        let s = schema(Heads::Named { dir: "/x" });
        assert_eq!(s.judge("want e1 c1\nhave c1 e1\n"), Verdict::Same);
        assert!(matches!(s.judge("want e1 c1\nhave e1\n"), Verdict::Differs(_)));
    }

    #[test]
    fn the_head_is_found_among_plain_annotated_and_tuple_migrations() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("a.py", "revision = 'aaa1'\ndown_revision = None\n");
        write("b.py", "revision: str = \"bbb2\"\ndown_revision: Union[str, None] = \"aaa1\"\n");
        write("c.py", "revision = 'ccc3'\ndown_revision = 'aaa1'\n");
        write("d.py", "revision = 'ddd4'\ndown_revision = (\n    'bbb2',\n    'ccc3',\n)\n");
        let path: &'static str = Box::leak(dir.path().display().to_string().into_boxed_str());
        let script = schema(Heads::Derived { dir: path }).probe().shell;
        let out = Command::new("sh").arg("-c").arg(script).output().unwrap();
        let seen = String::from_utf8(out.stdout).unwrap();
        assert_eq!(seen.lines().next(), Some("want ddd4"), "{seen}");
    }
}
