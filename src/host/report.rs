//! What was found on the host, as plain data.

use super::apt_config::Mirrors;
use super::debian::{OsRelease, Plan};
use super::memory::Memory;
use super::tool::Tool;
use super::version;
use serde::Serialize;
use std::cmp::Ordering;
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

/// Everything that decides whether and how labs run here.
#[derive(Clone, Debug, Serialize)]
pub struct HostReport {
    /// What the system calls itself, if it says so.
    pub system: Option<String>,
    pub root: bool,
    pub needs: Vec<Need>,
    pub cpus: usize,
    pub memory: Memory,
    /// The folder where images are kept, and the bytes free there.
    pub folder: PathBuf,
    pub free_bytes: Option<u64>,
    /// Accelerators. That one can be opened says nothing of its speed: that is measured.
    pub devices: Vec<Device>,
    /// From where Debian's packages come: as given, or as this host's apt is configured.
    #[serde(skip)]
    pub mirrors: Option<Mirrors>,
    #[serde(skip)]
    os: Option<OsRelease>,
}

/// One tool or file that is needed.
#[derive(Clone, Debug, Serialize)]
pub struct Need {
    pub name: &'static str,
    pub purpose: &'static str,
    /// The Debian package that brings it.
    pub package: &'static str,
    pub at_least: Option<&'static str>,
    pub state: NeedState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum NeedState {
    Found { path: PathBuf, version: Option<String> },
    TooOld { path: PathBuf, version: String },
    Missing,
}

#[derive(Clone, Debug, Serialize)]
pub struct Device {
    pub path: &'static str,
    pub state: DeviceState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    Opens,
    Absent,
    /// There, but it cannot be opened, and why.
    Refused(String),
}

impl Need {
    pub fn is_met(&self) -> bool {
        matches!(self.state, NeedState::Found { .. })
    }
}

/// As in `qemu-system-x86_64 (9.2 or newer; found 7.2.15)`.
impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        match (&self.state, self.at_least) {
            (NeedState::TooOld { version, .. }, Some(least)) => {
                write!(f, " ({least} or newer; found {version})")
            }
            (NeedState::Missing, Some(least)) => write!(f, " ({least} or newer)"),
            _ => Ok(()),
        }
    }
}

impl HostReport {
    pub fn missing(&self) -> Vec<&Need> {
        self.needs.iter().filter(|n| !n.is_met()).collect()
    }

    /// How to get what is missing, where that is known: on Debian, with apt.
    pub fn remedy(&self) -> Option<Plan> {
        let missing: Vec<&str> = self.missing().iter().map(|n| n.package).collect();
        Plan::new(&missing, self.os.as_ref()?, self.mirrors.as_ref()?)
    }
}

enum Kind {
    /// Run with this argument, it says its version.
    Program(&'static str),
    File,
}

struct Wanted {
    name: &'static str,
    kind: Kind,
    purpose: &'static str,
    package: &'static str,
    at_least: Option<&'static str>,
    /// Whom it is wanted for: Some(true) is root alone.
    root: Option<bool>,
}

const fn program(
    name: &'static str,
    package: &'static str,
    at_least: Option<&'static str>,
    purpose: &'static str,
) -> Wanted {
    Wanted { name, kind: Kind::Program("--version"), purpose, package, at_least, root: None }
}

const WANTED: [Wanted; 9] = [
    program("qemu-system-x86_64", "qemu-system-x86", Some("9.2"), "runs the virtual machines"),
    program("qemu-img", "qemu-utils", Some("9.2"), "makes and converts disks"),
    program("mmdebstrap", "mmdebstrap", Some("1.0"), "installs Debian into a folder"),
    Wanted {
        kind: Kind::Program("-V"),
        ..program("mke2fs", "e2fsprogs", Some("1.47"), "makes filesystems from folders")
    },
    program("apt-get", "apt", None, "fetches packages"),
    program("dpkg-deb", "dpkg", None, "unpacks packages"),
    Wanted { root: Some(true), ..program("unshare", "util-linux", None, "keeps builds apart") },
    Wanted {
        // It has no option that only says its version.
        kind: Kind::File,
        root: Some(false),
        ..program("/usr/bin/newuidmap", "uidmap", None, "lets builds run without root")
    },
    Wanted {
        kind: Kind::File,
        ..program(
            "/usr/share/keyrings/debian-archive-keyring.gpg",
            "debian-archive-keyring",
            None,
            "verifies Debian's packages",
        )
    },
];

/// Looks at the host. Changes nothing, and never fails: what cannot be seen is not there. Mirrors that
/// are `given` come before those of the host's apt.
pub async fn inspect(folder: &Path, given: Option<&Mirrors>) -> HostReport {
    let root = rustix::process::geteuid().is_root();
    let mut needs = Vec::new();
    for wanted in WANTED.iter().filter(|w| w.root.is_none_or(|r| r == root)) {
        let state = match wanted.kind {
            Kind::Program(argument) => look_at(wanted, argument).await,
            Kind::File if Path::new(wanted.name).exists() => {
                NeedState::Found { path: wanted.name.into(), version: None }
            }
            Kind::File => NeedState::Missing,
        };
        let Wanted { name, purpose, package, at_least, .. } = *wanted;
        needs.push(Need { name, purpose, package, at_least, state });
    }
    let os = OsRelease::read(Path::new("/etc/os-release"));
    HostReport {
        system: os.as_ref().map(|os| os.name.clone()),
        root,
        needs,
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory: Memory::look(Path::new("/")).unwrap_or_default(),
        free_bytes: free(folder),
        folder: folder.to_owned(),
        devices: ["/dev/kvm"].map(|path| Device { path, state: device(path) }).into(),
        mirrors: given.cloned().or_else(|| Mirrors::of_apt(Path::new("/etc/apt"))),
        os,
    }
}

async fn look_at(wanted: &Wanted, argument: &str) -> NeedState {
    let Some(path) = find(wanted.name) else { return NeedState::Missing };
    let said = Tool::new(&path).arg(argument).output().await.unwrap_or_default();
    judge(path, version::in_text(&said), wanted.at_least)
}

fn judge(path: PathBuf, version: Option<&str>, at_least: Option<&str>) -> NeedState {
    let version = version.map(str::to_owned);
    match (version, at_least) {
        (Some(version), Some(least)) if version::compare(&version, least) == Ordering::Less => {
            NeedState::TooOld { path, version }
        }
        // A tool that does not even say its version is no help.
        (None, Some(_)) => NeedState::Missing,
        (version, _) => NeedState::Found { path, version },
    }
}

/// In the path, or where administration tools are.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(program)).find(|p| p.is_file())
}

fn device(path: &str) -> DeviceState {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => DeviceState::Opens,
        Err(e) if e.kind() == io::ErrorKind::NotFound => DeviceState::Absent,
        Err(e) => DeviceState::Refused(e.to_string()),
    }
}

/// Of the folder, or of the nearest one above it that is there.
fn free(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|p| p.exists())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_tool_is_not_taken_for_a_found_one() {
        let path = PathBuf::from("/usr/bin/x");
        let too_old = judge(path.clone(), Some("7.2.15"), Some("9.2"));
        assert!(matches!(&too_old, NeedState::TooOld { version, .. } if version == "7.2.15"));
        assert!(matches!(
            judge(path.clone(), Some("10.0.2"), Some("9.2")),
            NeedState::Found { .. }
        ));
        assert_eq!(judge(path.clone(), None, Some("9.2")), NeedState::Missing);
        assert!(matches!(judge(path, None, None), NeedState::Found { .. }));
        let need =
            Need { state: too_old, at_least: Some("9.2"), name: "qemu", purpose: "", package: "" };
        assert_eq!(need.to_string(), "qemu (9.2 or newer; found 7.2.15)");
    }

    #[test]
    fn a_device_is_opened_not_only_seen() {
        assert_eq!(device("/nonexistent/kvm"), DeviceState::Absent);
        assert_eq!(device("/dev/null"), DeviceState::Opens);
        assert!(matches!(device("/proc"), DeviceState::Refused(_)));
    }

    #[tokio::test]
    async fn what_is_missing_comes_from_the_mirror_that_was_given() {
        let given = Mirrors::given("http://given.example.org/debian/");
        let mut report = inspect(Path::new("/"), Some(&given)).await;
        report.needs[0].state = NeedState::Missing;
        report.os = OsRelease::parse("ID=debian\nVERSION_CODENAME=trixie\n");
        let command = report.remedy().unwrap().command();
        assert!(command.contains("URIs: http://given.example.org/debian\\n"), "{command}");
    }

    #[tokio::test]
    async fn the_host_is_looked_at_without_an_error_even_for_a_folder_to_come() {
        let report = inspect(Path::new("/nonexistent/images"), None).await;
        assert!(report.memory.total > 0 && report.free_bytes.is_some() && report.cpus > 0);
        assert_eq!(report.needs.iter().filter(|n| n.name == "qemu-system-x86_64").count(), 1);
    }
}
