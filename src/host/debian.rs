//! How a Debian host gets what it lacks: with apt, for this one call with sources and lists of its
//! own, so that nothing is left behind in the host's configuration.

use super::apt_config::Mirrors;
use super::tool::Tool;
use std::collections::BTreeSet;
use std::path::Path;

/// What `/etc/os-release` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsRelease {
    pub name: String,
    pub id: String,
    /// The distributions that it derives from, the nearest first.
    pub id_like: Vec<String>,
    pub codename: Option<String>,
}

impl OsRelease {
    pub fn read(path: &Path) -> Option<OsRelease> {
        OsRelease::parse(&std::fs::read_to_string(path).ok()?)
    }

    pub fn parse(text: &str) -> Option<OsRelease> {
        let field = |name: &str| {
            let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='))?;
            Some(value.trim().trim_matches(['"', '\'']).to_owned())
        };
        let id = field("ID")?;
        let name = field("PRETTY_NAME").unwrap_or_else(|| id.clone());
        let id_like = field("ID_LIKE").unwrap_or_default();
        let id_like = id_like.split_whitespace().map(str::to_owned).collect();
        Some(OsRelease { name, id, id_like, codename: field("VERSION_CODENAME") })
    }

    /// Whether it derives from the distribution `id`.
    pub fn is_like(&self, id: &str) -> bool {
        self.id_like.iter().any(|like| like == id)
    }
}

/// QEMU's packages are of one version or do not go together: when one is fetched, so is the other.
const QEMU: [&str; 2] = ["qemu-system-x86", "qemu-utils"];

/// Releases whose own QEMU is too old, while their backports have one that is not.
const OLD_QEMU: [&str; 1] = ["bookworm"];
/// Releases of which nothing helps.
const TOO_OLD: [&str; 3] = ["bullseye", "buster", "stretch"];

/// What is installed, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    codename: String,
    mirrors: Mirrors,
    /// From the release itself.
    plain: Vec<String>,
    /// From its backports.
    backported: Vec<String>,
}

impl Plan {
    /// None if nothing is missing, or this is no Debian that has what is missing.
    pub fn new(missing: &[&str], os: &OsRelease, mirrors: &Mirrors) -> Option<Plan> {
        let codename = os.codename.clone()?;
        if missing.is_empty() || os.id != "debian" || TOO_OLD.contains(&codename.as_str()) {
            return None;
        }
        // These go into a script: a name that the shell would read otherwise is no mirror.
        let sane = |text: &str| {
            text.chars().all(|c| c.is_ascii_alphanumeric() || ":/._~%+-@?=&,[]".contains(c))
        };
        if ![&codename, &mirrors.archive].iter().all(|t| sane(t))
            || !mirrors.security.iter().all(|t| sane(t))
        {
            return None;
        }
        let mut wanted: BTreeSet<&str> = missing.iter().copied().collect();
        let backports = OLD_QEMU.contains(&codename.as_str());
        if backports && QEMU.iter().any(|q| wanted.contains(q)) {
            wanted.extend(QEMU);
        }
        let (backported, plain): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .map(str::to_owned)
            .partition(|p| backports && QEMU.contains(&p.as_str()));
        Some(Plan { codename, mirrors: mirrors.clone(), plain, backported })
    }

    /// Every package that will be installed by name.
    pub fn packages(&self) -> Vec<&str> {
        self.backported.iter().chain(&self.plain).map(String::as_str).collect()
    }

    /// A script for `sh`, to be run as root.
    pub fn script(&self) -> String {
        let Plan { codename, mirrors, .. } = self;
        let mut suites = format!("{codename} {codename}-updates");
        if !self.backported.is_empty() {
            suites.push_str(&format!(" {codename}-backports"));
        }
        let mut sources = source(&mirrors.archive, &suites);
        if let Some(security) = &mirrors.security {
            sources.push_str("\\n");
            sources.push_str(&source(security, &format!("{codename}-security")));
        }
        let mut script = format!(
            "set -e; export DEBIAN_FRONTEND=noninteractive; d=$(mktemp -d); \
             trap \"rm -rf $d\" EXIT; trap \"exit 1\" INT TERM; chmod 755 $d; \
             mkdir -p $d/sources $d/lists/partial; printf \"{sources}\" >$d/sources/debian.sources; \
             get() {{ apt-get -q -y -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=$d/sources \
             -o Dir::State::Lists=$d/lists -o DPkg::Lock::Timeout=300 \"$@\"; }}; get update"
        );
        if !self.backported.is_empty() {
            script.push_str(&format!(
                "; get install --no-install-recommends -t {codename}-backports {}",
                self.backported.join(" ")
            ));
        }
        if !self.plain.is_empty() {
            script.push_str(&format!(
                "; get install --no-install-recommends {}",
                self.plain.join(" ")
            ));
        }
        script
    }

    /// Packages that the release itself has.
    pub fn plain(&self) -> &[String] {
        &self.plain
    }

    /// Whether some packages come from backports, which needs more than one plain command.
    pub fn has_backports(&self) -> bool {
        !self.backported.is_empty()
    }

    /// The same, to be run here. It stops between packages rather than in the middle of one.
    pub(super) fn tool(&self) -> Tool {
        Tool::new("sh").arg("-c").arg(self.script()).asked_to_stop()
    }
}

/// A deb822 stanza as `printf` takes it.
fn source(uri: &str, suites: &str) -> String {
    let uri = uri.replace('%', "%%");
    format!(
        "Types: deb\\nURIs: {uri}\\nSuites: {suites}\\nComponents: main\\nSigned-By: \
         /usr/share/keyrings/debian-archive-keyring.gpg\\n"
    )
}

/// How far an installation by apt is, from what apt and dpkg say: every package is fetched,
/// unpacked and set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steps {
    pub done: u64,
    packages: u64,
}

impl Steps {
    /// Whether the line said something about it.
    pub fn read(&mut self, line: &str) -> bool {
        if let Some((_, rest)) = line.split_once(" upgraded, ")
            && let Some((new, _)) = rest.split_once(" newly installed")
            && let Ok(new) = new.parse::<u64>()
        {
            self.packages += new;
            return true;
        }
        let step = ["Get:", "Unpacking ", "Setting up "].iter().any(|s| line.starts_with(s));
        self.done += u64::from(step);
        step
    }

    /// Never less than what is done, for lists are fetched too and packages upgraded.
    pub fn total(&self) -> u64 {
        (self.packages * 3).max(self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKWORM: &str =
        "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_CODENAME=bookworm\n";

    fn os(id: &str, codename: &str) -> OsRelease {
        let codename = Some(codename.into());
        OsRelease { name: id.into(), id: id.into(), id_like: Vec::new(), codename }
    }
    fn mirrors() -> Mirrors {
        Mirrors {
            archive: "http://mirror.example.org/debian".into(),
            security: Some("http://mirror.example.org/debian-security".into()),
        }
    }

    #[test]
    fn bookworm_takes_both_of_qemus_packages_from_its_backports_and_the_rest_from_itself() {
        let os = OsRelease::parse(BOOKWORM).unwrap();
        assert_eq!(
            os,
            OsRelease {
                name: "Debian GNU/Linux 12 (bookworm)".into(),
                ..self::os("debian", "bookworm")
            }
        );
        let plan = Plan::new(&["qemu-utils", "mmdebstrap"], &os, &mirrors()).unwrap();
        assert_eq!(plan.packages(), ["qemu-system-x86", "qemu-utils", "mmdebstrap"]);
        let script = plan.script();
        assert!(
            script.contains("-t bookworm-backports qemu-system-x86 qemu-utils; get install"),
            "{script}"
        );
        assert!(script.ends_with("--no-install-recommends mmdebstrap"), "{script}");
        assert!(script.contains("Suites: bookworm bookworm-updates bookworm-backports\\n"));
    }

    #[test]
    fn a_newer_debian_needs_no_backports() {
        let plan = Plan::new(&["qemu-system-x86"], &os("debian", "trixie"), &mirrors()).unwrap();
        assert!(!plan.script().contains("backports"));
        let plan = Plan::new(&["mmdebstrap"], &os("debian", "bookworm"), &mirrors()).unwrap();
        assert!(!plan.script().contains("backports"), "nor does bookworm for what it has itself");
    }

    #[test]
    fn there_is_no_plan_where_nothing_is_missing_or_nothing_helps() {
        assert_eq!(Plan::new(&[], &os("debian", "trixie"), &mirrors()), None);
        assert_eq!(Plan::new(&["mmdebstrap"], &os("fedora", "x"), &mirrors()), None);
        assert_eq!(Plan::new(&["mmdebstrap"], &os("debian", "bullseye"), &mirrors()), None);
        let hostile = Mirrors::given("http://m.example.org/$(reboot)/debian");
        assert_eq!(Plan::new(&["mmdebstrap"], &os("debian", "trixie"), &hostile), None);
    }

    #[tokio::test]
    async fn the_script_writes_the_sources_that_apt_gets_and_leaves_nothing_behind() {
        // A stand-in for apt-get shows what it was given.
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("apt-get");
        let fake = "#!/bin/sh\nfor a; do case $a in Dir::Etc::SourceParts=*) d=${a#*=};; esac; done\necho \"ARGS $*\"; cat $d/debian.sources; echo $d\n";
        std::fs::write(&bin, fake).unwrap();
        std::fs::set_permissions(&bin, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let plan = Plan::new(&["qemu-utils"], &os("debian", "bookworm"), &mirrors()).unwrap();
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
        let said = plan.tool().env("PATH", path).output().await.unwrap();
        let sources = super::super::apt_config::parse_deb822(&said);
        assert!(
            sources.iter().any(|s| s.suites.contains(&"bookworm-backports".to_owned())),
            "{said}"
        );
        assert!(sources.iter().any(|s| s.uris == ["http://mirror.example.org/debian-security"]));
        let folder = said.lines().last().unwrap();
        assert!(folder.starts_with('/') && !Path::new(folder).exists(), "{folder}");
    }

    #[test]
    fn progress_counts_what_apt_announces_and_dpkg_does() {
        let mut steps = Steps::default();
        assert!(steps.read("0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded."));
        for line in ["Get:1 http://m.example.org x", "Unpacking a (1) ...", "Setting up a (1) ..."]
        {
            assert!(steps.read(line), "{line}");
        }
        assert!(!steps.read("Preparing to unpack .../a.deb ..."));
        assert_eq!((steps.done, steps.total()), (3, 6));
    }
}
