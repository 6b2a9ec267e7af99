//! What was found on the host, as plain data.

use super::apt_config::Mirrors;
use super::debian::{OsRelease, Plan};
use super::memory::Memory;
use super::namespaces::{NamespaceFault, name_of_id, try_namespaces};
use super::tool::{Tool, search_path};
use super::{advice, version};
use serde::Serialize;
use std::cmp::Ordering;
use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::MetadataExt;
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
    /// From where this host's own packages come: as given, or as its apt is configured.
    #[serde(skip)]
    pub apt_mirrors: Option<Mirrors>,
    #[serde(skip)]
    pub(super) os: Option<OsRelease>,
}

/// What a host is used for. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostScope {
    /// Labs run from images that are in the store.
    RunLabs,
    /// Images are built from recipes.
    BuildImages,
}

/// One tool or ability that is needed.
#[derive(Clone, Debug, Serialize)]
pub struct Need {
    pub name: &'static str,
    pub purpose: &'static str,
    /// The least use of the host that needs it.
    pub scope: HostScope,
    /// The Debian package that brings it.
    pub package: &'static str,
    pub at_least: Option<&'static str>,
    pub state: NeedState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum NeedState {
    Found {
        path: PathBuf,
        version: Option<String>,
    },
    TooOld {
        path: PathBuf,
        version: String,
    },
    Missing,
    /// It was tried and works.
    Works,
    /// It was tried and does not work.
    Refused {
        reason: String,
        remedy: String,
    },
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
    /// There, but this user may not open it. The group may, where one is named.
    Denied {
        group: Option<String>,
    },
    /// There, but it cannot be opened, and why.
    Refused(String),
}

impl Need {
    pub fn is_met(&self) -> bool {
        matches!(self.state, NeedState::Found { .. } | NeedState::Works)
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
            (NeedState::Refused { reason, .. }, _) => write!(f, " ({reason})"),
            _ => Ok(()),
        }
    }
}

impl HostReport {
    pub fn missing(&self, scope: HostScope) -> Vec<&Need> {
        self.needs.iter().filter(|n| n.scope <= scope && !n.is_met()).collect()
    }

    /// How apt gets the packages that are missing. None where this is another system, has no apt, or
    /// what is missing comes in no package.
    pub fn install_plan(&self, scope: HostScope) -> Option<Plan> {
        self.needs.iter().find(|n| n.name == "apt-get" && n.is_met())?;
        let in_package = |n: &&&Need| !matches!(n.state, NeedState::Refused { .. });
        let missing = self.missing(scope);
        let missing: Vec<&str> = missing.iter().filter(in_package).map(|n| n.package).collect();
        Plan::new(&missing, self.os.as_ref()?, self.apt_mirrors.as_ref()?)
    }

    /// What a person types to get what is missing.
    pub fn steps(&self, scope: HostScope) -> Vec<String> {
        advice::steps(self, scope, &program_name())
    }

    /// What a person types to open devices that this user may not open.
    pub fn device_steps(&self) -> Vec<String> {
        let step = |d: &Device| advice::device_step(Path::new(d.path), &d.state);
        self.devices.iter().filter_map(step).collect()
    }
}

/// What is typed to start this program: its name where the path has it, else its file.
fn program_name() -> String {
    let Ok(exe) = std::env::current_exe() else { return "stackproof".into() };
    match find("stackproof") == Some(exe.clone()) {
        true => "stackproof".into(),
        false => exe.display().to_string(),
    }
}

enum Kind {
    /// Run with this argument, it says its version.
    Program(&'static str),
    /// A program that has no option which only says its version.
    Silent,
}

struct Wanted {
    name: &'static str,
    kind: Kind,
    scope: HostScope,
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
    let (kind, scope) = (Kind::Program("--version"), HostScope::BuildImages);
    Wanted { name, kind, scope, purpose, package, at_least, root: None }
}

const fn to_run(wanted: Wanted) -> Wanted {
    Wanted { scope: HostScope::RunLabs, ..wanted }
}

const WANTED: [Wanted; 8] = [
    to_run(program(
        "qemu-system-x86_64",
        "qemu-system-x86",
        Some("9.2"),
        "runs the virtual machines",
    )),
    to_run(program("qemu-img", "qemu-utils", Some("9.2"), "makes and converts disks")),
    program("mmdebstrap", "mmdebstrap", Some("1.0"), "installs Debian into a folder"),
    Wanted {
        kind: Kind::Program("-V"),
        ..program("mke2fs", "e2fsprogs", Some("1.47"), "makes filesystems from folders")
    },
    program("apt-get", "apt", None, "fetches packages"),
    program("dpkg-deb", "dpkg", None, "unpacks packages"),
    Wanted { root: Some(true), ..program("unshare", "util-linux", None, "keeps builds apart") },
    Wanted {
        kind: Kind::Silent,
        root: Some(false),
        ..program("newuidmap", "uidmap", None, "lets builds run without root")
    },
];

/// Looks at the host. Changes nothing, and never fails: what cannot be seen is not there. Mirrors that
/// are `given` come before those of the host's apt.
pub async fn inspect(folder: &Path, given: Option<&Mirrors>) -> HostReport {
    let root = rustix::process::geteuid().is_root();
    let mut needs = Vec::new();
    for wanted in WANTED.iter().filter(|w| w.root.is_none_or(|r| r == root)) {
        let state = look_at(wanted).await;
        let Wanted { name, purpose, scope, package, at_least, .. } = *wanted;
        needs.push(Need { name, purpose, scope, package, at_least, state });
    }
    // Without its tools it would fail for another reason.
    if needs.iter().all(|n| n.scope != HostScope::BuildImages || n.is_met()) {
        needs.push(namespaces(root).await);
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
        apt_mirrors: given.cloned().or_else(|| Mirrors::of_apt(Path::new("/etc/apt"))),
        os,
    }
}

async fn namespaces(root: bool) -> Need {
    let state = match try_namespaces(root).await {
        Ok(()) => NeedState::Works,
        Err(NamespaceFault { reason, remedy }) => NeedState::Refused { reason, remedy },
    };
    Need {
        name: "namespaces",
        purpose: "keep builds apart",
        scope: HostScope::BuildImages,
        package: "",
        at_least: None,
        state,
    }
}

async fn look_at(wanted: &Wanted) -> NeedState {
    let Some(path) = find(wanted.name) else { return NeedState::Missing };
    let Kind::Program(argument) = wanted.kind else {
        return NeedState::Found { path, version: None };
    };
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
    std::env::split_paths(&search_path()).map(|dir| dir.join(program)).find(|p| p.is_file())
}

fn device(path: &str) -> DeviceState {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => DeviceState::Opens,
        Err(e) if e.kind() == io::ErrorKind::NotFound => DeviceState::Absent,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            DeviceState::Denied { group: group_of(Path::new(path)) }
        }
        Err(e) => DeviceState::Refused(e.to_string()),
    }
}

/// The group that may read and write a device, unless it is root's own.
fn group_of(path: &Path) -> Option<String> {
    let meta = std::fs::metadata(path).ok()?;
    let shared = meta.mode() & 0o060 == 0o060 && meta.gid() != 0;
    shared.then(|| name_of_id(Path::new("/etc/group"), meta.gid()))?
}

/// Of the folder, or of the nearest one above it that is there.
fn free(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|p| p.exists())?;
    crate::fsutil::free_bytes(there).ok()
}

/// A host that has everything, for tests.
#[cfg(test)]
pub(super) fn example() -> HostReport {
    let found = NeedState::Found { path: "/usr/bin/x".into(), version: None };
    let needs = WANTED.iter().map(|wanted| {
        let Wanted { name, purpose, scope, package, at_least, .. } = *wanted;
        Need { name, purpose, scope, package, at_least, state: found.clone() }
    });
    HostReport {
        system: None,
        root: false,
        needs: needs.collect(),
        cpus: 2,
        memory: Memory { total: 0, available: 0 },
        folder: "/".into(),
        free_bytes: None,
        devices: Vec::new(),
        apt_mirrors: None,
        os: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_tools_do_not_count_for_running() {
        let mut report = example();
        let mmdebstrap = report.needs.iter_mut().find(|n| n.name == "mmdebstrap").unwrap();
        mmdebstrap.state = NeedState::Missing;
        assert!(report.missing(HostScope::RunLabs).is_empty());
        assert_eq!(report.missing(HostScope::BuildImages)[0].name, "mmdebstrap");
    }

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
        let mut need = example().needs.remove(0);
        need.state = too_old;
        assert_eq!(need.to_string(), "qemu-system-x86_64 (9.2 or newer; found 7.2.15)");
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
        report.needs = example().needs;
        report.needs[0].state = NeedState::Missing;
        report.os = OsRelease::parse("ID=debian\nVERSION_CODENAME=trixie\n");
        let script = report.install_plan(HostScope::RunLabs).unwrap().script();
        assert!(script.contains("URIs: http://given.example.org/debian\\n"), "{script}");
    }

    #[tokio::test]
    async fn the_host_is_looked_at_without_an_error_even_for_a_folder_to_come() {
        let report = inspect(Path::new("/nonexistent/images"), None).await;
        assert!(report.memory.total > 0 && report.free_bytes.is_some() && report.cpus > 0);
        assert_eq!(report.needs.iter().filter(|n| n.name == "qemu-system-x86_64").count(), 1);
    }
}
