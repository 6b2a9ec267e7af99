//! Nova's cells: cell0 for servers that were never scheduled, and cell1 for all others.

use super::as_user;
use crate::engine::resource::{Input, Resource, Script, Verdict};
use crate::secret::Secret;
use sha2::{Digest, Sha256};

#[derive(Clone, Debug)]
pub struct Cells {
    /// `mysql+pymysql://nova:…@address/nova_cell0`
    pub cell0_database: Secret,
    pub cell1_database: Secret,
    pub transport_url: Secret,
}

/// Cell0's transport is never used; nova writes this.
const NO_TRANSPORT: &str = "none:///";

/// The URLs hold passwords: only their digests are read back.
fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

impl Cells {
    fn wanted(&self) -> [(&'static str, String); 2] {
        let line =
            |db: &Secret, transport: &str| format!("{} {}", digest(transport), digest(db.reveal()));
        [
            ("cell0", line(&self.cell0_database, NO_TRANSPORT)),
            ("cell1", line(&self.cell1_database, self.transport_url.reveal())),
        ]
    }

    fn found<'a>(seen: &'a str, cell: &str) -> Option<(&'a str, &'a str)> {
        seen.lines().find_map(|line| {
            let (name, rest) = line.split_once(' ')?;
            let (uuid, digests) = rest.split_once(' ')?;
            (name == cell).then_some((uuid, digests))
        })
    }
}

impl Resource for Cells {
    fn id(&self) -> String {
        "nova cells".into()
    }

    fn probe(&self) -> Script {
        Script {
            shell: "mariadb -N -B -e \"SELECT CONCAT(COALESCE(name, '?'), ' ', uuid, ' ', \
                    SHA2(transport_url, 256), ' ', SHA2(database_connection, 256)) \
                    FROM cell_mappings\" nova_api 2>/dev/null || true\n"
                .into(),
            inputs: vec![],
        }
    }

    fn judge(&self, seen: &str) -> Verdict {
        let differs: Vec<String> = self
            .wanted()
            .iter()
            .filter_map(|(cell, want)| match Self::found(seen, cell) {
                None => Some(format!("{cell}: absent")),
                Some((_, have)) if have != want => Some(format!("{cell}: other URLs")),
                Some(_) => None,
            })
            .collect();
        if differs.is_empty() { Verdict::Same } else { Verdict::Differs(differs) }
    }

    fn apply(&self, seen: &str) -> Script {
        let manage = format!("{} nova-manage cell_v2", as_user("nova"));
        let mut shell = String::new();
        let mut sql = String::new();
        let moves = [
            (NO_TRANSPORT, &self.cell0_database, "map_cell0"),
            (self.transport_url.reveal(), &self.cell1_database, "create_cell --name cell1"),
        ];
        for ((cell, want), (transport, database, make)) in self.wanted().into_iter().zip(moves) {
            match Self::found(seen, cell) {
                // Both commands take the URLs from nova.conf: no password stands in an argument.
                None => shell += &format!("{manage} {make}\n"),
                // `update_cell` would want them as arguments.
                Some((uuid, have)) if have != want => {
                    sql += &format!(
                        "UPDATE cell_mappings SET transport_url = '{transport}', \
                         database_connection = '{}' WHERE uuid = '{uuid}';\n",
                        database.reveal()
                    );
                }
                Some(_) => {}
            }
        }
        if !sql.is_empty() {
            shell += "mariadb nova_api < \"$IN/sql\"\n";
        }
        Script { shell, inputs: vec![("sql".into(), Input::SecretBytes(sql.into_bytes()))] }
    }

    fn patience(&self) -> u64 {
        60
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells() -> Cells {
        Cells {
            cell0_database: Secret::new("mysql+pymysql://nova:secretsecret@h/nova_cell0"),
            cell1_database: Secret::new("mysql+pymysql://nova:secretsecret@h/nova"),
            transport_url: Secret::new("rabbit://openstack:secretsecret@h:5672/"),
        }
    }

    fn row(cells: &Cells, cell: &str) -> String {
        let want = cells.wanted().into_iter().find(|w| w.0 == cell).unwrap().1;
        format!("{cell} 0000-uuid {want}\n")
    }

    #[test]
    fn absent_cells_are_made_and_moved_ones_are_updated() {
        let c = cells();
        let Verdict::Differs(lines) = c.judge("") else { panic!("absent cells are no match") };
        assert_eq!(lines, ["cell0: absent", "cell1: absent"]);
        assert!(c.apply("").shell.contains("create_cell"));

        let whole = row(&c, "cell0") + &row(&c, "cell1");
        assert_eq!(c.judge(&whole), Verdict::Same);

        let moved = row(&c, "cell0") + "cell1 1111-uuid aa bb\n";
        assert_eq!(c.judge(&moved), Verdict::Differs(vec!["cell1: other URLs".into()]));
        let fix = c.apply(&moved).shell;
        assert!(!fix.contains("secretsecret"));
        assert_eq!(fix, "mariadb nova_api < \"$IN/sql\"\n");
    }
}
