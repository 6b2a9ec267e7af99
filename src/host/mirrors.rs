//! From where Debian is installed: as the user says, as the host's apt is configured, or as
//! mmdebstrap does by default. No mirror's name is written anywhere in stackproof.

use super::apt_config::{Mirrors, parse_deb822, parse_list};
use super::namespaces::ROOT_NAMESPACES;
use super::tool::Tool;
use std::path::Path;

/// mmdebstrap runs it when it has written its sources and before it asks a mirror.
const SHOW_SOURCES: &str =
    "cat \"$1\"/etc/apt/sources.list \"$1\"/etc/apt/sources.list.d/* 2>/dev/null; exit 1";

impl Mirrors {
    /// The mirrors that images are built from. None where nothing names one.
    pub async fn find(given: Option<&Mirrors>, suite: &str) -> Option<Mirrors> {
        let configured = given.cloned().or_else(|| Mirrors::of_apt(Path::new("/etc/apt")));
        match configured {
            Some(mirrors) => Some(mirrors),
            None => Mirrors::of_mmdebstrap(suite).await,
        }
    }

    /// Those that mmdebstrap takes for a release where it is given none.
    async fn of_mmdebstrap(suite: &str) -> Option<Mirrors> {
        let tool = match rustix::process::geteuid().is_root() {
            true => Tool::new("unshare").args(ROOT_NAMESPACES).args(["mmdebstrap", "--mode=root"]),
            false => Tool::new("mmdebstrap").arg("--mode=unshare").asked_to_stop(),
        };
        let tool = tool.args(["--variant=custom", "--format=null"]);
        let tool = tool.arg(format!("--setup-hook={SHOW_SOURCES}")).arg(suite);
        let mut said = String::new();
        // The hook ends it before it installs anything, so it fails in any case.
        let _ = tool.run(|line| said.extend([line, "\n"])).await;
        in_output(&said)
    }
}

/// Sources in either format, among mmdebstrap's messages.
fn in_output(said: &str) -> Option<Mirrors> {
    Mirrors::among(&parse_list(said)).or_else(|| Mirrors::among(&parse_deb822(said)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_given_mirror_comes_first() {
        let given = Mirrors::given("http://given.example.org/debian/");
        assert_eq!(Mirrors::find(Some(&given), "trixie").await, Some(given));
    }

    #[test]
    fn sources_are_found_among_messages_of_mmdebstrap() {
        let said = "I: running --setup-hook in shell: sh -c 'cat \"$1\"/etc/apt/sources.list'\n\
            deb http://mirror.example.org/debian trixie main\n\
            deb http://security.example.org/debian-security trixie-security main\n\
            E: command failed: cat\nE: mmdebstrap failed to run\n";
        let found = in_output(said).unwrap();
        assert_eq!(found.archive, "http://mirror.example.org/debian");
        assert!(found.security.is_some());
        assert_eq!(in_output("E: mmdebstrap failed to run\n"), None);
    }
}
