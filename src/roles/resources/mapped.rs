//! Every compute node is known to the scheduler (`nova-manage cell_v2 discover_hosts`).

use super::as_user;
use crate::engine::resource::{Resource, Script, Verdict};

#[derive(Clone, Debug)]
pub struct HostsMapped {
    /// The names under which the compute services register.
    pub hosts: Vec<String>,
}

impl Resource for HostsMapped {
    fn id(&self) -> String {
        "nova host mappings".into()
    }

    fn probe(&self) -> Script {
        Script {
            shell:
                "mariadb -N -B -e \"SELECT host FROM host_mappings\" nova_api 2>/dev/null || true\n"
                    .into(),
            inputs: vec![],
        }
    }

    fn judge(&self, seen: &str) -> Verdict {
        let differs: Vec<String> = self
            .hosts
            .iter()
            .filter(|h| !seen.lines().any(|l| l.trim() == h.as_str()))
            .map(|h| format!("{h}: not mapped to a cell"))
            .collect();
        if differs.is_empty() { Verdict::Same } else { Verdict::Differs(differs) }
    }

    /// A compute service registers its node some time after it has started: the command would find
    /// nothing before. The engine's deadline bounds the loop.
    fn apply(&self, _seen: &str) -> Script {
        let list: String =
            self.hosts.iter().map(|h| format!("'{h}'")).collect::<Vec<_>>().join(",");
        Script {
            shell: format!(
                "while [ \"$(mariadb -N -B -e \"SELECT COUNT(DISTINCT host) FROM compute_nodes \
                 WHERE deleted = 0 AND host IN ({list})\" nova)\" != {} ]; do sleep 1; done\n\
                 {} nova-manage cell_v2 discover_hosts\n",
                self.hosts.len(),
                as_user("nova")
            ),
            inputs: vec![],
        }
    }

    fn patience(&self) -> u64 {
        90
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unmapped_host_is_named() {
        let r = HostsMapped { hosts: vec!["openstack2".into(), "openstack3".into()] };
        assert_eq!(r.judge("openstack2\nopenstack3\n"), Verdict::Same);
        assert_eq!(
            r.judge("openstack2\n"),
            Verdict::Differs(vec!["openstack3: not mapped to a cell".into()])
        );
    }
}
