//! What a person types to get what the host lacks, by distribution.

use super::debian::{OsRelease, Plan};
use super::report::{DeviceState, HostReport, HostScope, Need, NeedState};
use std::path::Path;

/// The distributions whose package names are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distribution {
    Debian,
    Ubuntu,
    Fedora,
    /// CentOS Stream, RHEL, Rocky Linux, AlmaLinux: their QEMU is `qemu-kvm`, which has neither
    /// TCG's devices nor the name that labs start.
    EnterpriseLinux,
    NixOs,
    Other,
}

impl Distribution {
    fn of(os: Option<&OsRelease>) -> Distribution {
        let Some(os) = os else { return Distribution::Other };
        match os.id.as_str() {
            "debian" => Distribution::Debian,
            "ubuntu" => Distribution::Ubuntu,
            "fedora" => Distribution::Fedora,
            "nixos" => Distribution::NixOs,
            "centos" | "rhel" | "rocky" | "almalinux" => Distribution::EnterpriseLinux,
            _ if os.is_like("rhel") => Distribution::EnterpriseLinux,
            _ if os.is_like("ubuntu") => Distribution::Ubuntu,
            _ if os.is_like("fedora") => Distribution::Fedora,
            _ => Distribution::Other,
        }
    }

    /// The package that brings `need` there.
    fn package(self, need: &Need) -> &'static str {
        match (self, need.name) {
            (Distribution::Fedora, "qemu-system-x86_64") => "qemu-system-x86-core",
            (Distribution::Fedora, "qemu-img") => "qemu-img",
            (Distribution::Fedora, "newuidmap") => "shadow-utils",
            (Distribution::NixOs, "qemu-system-x86_64" | "qemu-img") => "qemu",
            _ => need.package,
        }
    }
}

/// Everything that a host lacks for `scope`, as steps that a person types. `program` is how this
/// program is called on the command line.
pub fn steps(report: &HostReport, scope: HostScope, program: &str) -> Vec<String> {
    let missing = report.missing(scope);
    let mut steps = package_steps(report, &missing, program);
    steps.extend(missing.iter().filter_map(|need| match &need.state {
        NeedState::Refused { remedy, .. } => Some(remedy.clone()),
        _ => None,
    }));
    let runs = report.missing(HostScope::RunLabs).is_empty();
    if runs && !missing.is_empty() {
        steps.push(format!(
            "or build the image on a Debian machine ({program} images export NAME) and bring it \
             here ({program} images import DIR)"
        ));
    }
    steps
}

fn package_steps(report: &HostReport, missing: &[&Need], program: &str) -> Vec<String> {
    let absent = |n: &&&Need| matches!(n.state, NeedState::Missing | NeedState::TooOld { .. });
    let absent: Vec<&Need> = missing.iter().filter(absent).copied().collect();
    if absent.is_empty() {
        return Vec::new();
    }
    let distribution = Distribution::of(report.os.as_ref());
    let mut packages: Vec<&str> = absent.iter().map(|n| distribution.package(n)).collect();
    packages.sort_unstable();
    packages.dedup();
    let qemu_too_old = absent.iter().any(|n| matches!(n.state, NeedState::TooOld { .. }));
    let packages_text = packages.join(" ");
    match distribution {
        Distribution::Debian => debian_steps(report, &packages, program),
        Distribution::Ubuntu if !qemu_too_old => {
            vec![format!("sudo apt-get install {packages_text}")]
        }
        Distribution::Fedora if !qemu_too_old => vec![format!("sudo dnf install {packages_text}")],
        Distribution::NixOs if absent.iter().all(|n| n.scope == HostScope::RunLabs) => {
            vec![format!("nix-shell -p {packages_text}")]
        }
        // Images cannot be built there: the last step says how they are brought in.
        Distribution::NixOs if absent.iter().all(|n| n.scope != HostScope::RunLabs) => Vec::new(),
        Distribution::Other => {
            let names: Vec<String> = absent.iter().map(ToString::to_string).collect();
            vec![format!("install {} with your package manager", names.join(", "))]
        }
        _ => vec![container(program)],
    }
}

/// Debian's packages; what comes from backports needs sources of its own, so the program does it.
fn debian_steps(report: &HostReport, packages: &[&str], program: &str) -> Vec<String> {
    let plan = |names: &[&str]| Plan::new(names, report.os.as_ref()?, report.apt_mirrors.as_ref()?);
    match plan(packages) {
        None => vec![container(program)],
        Some(plan) => {
            let mut steps = Vec::new();
            if plan.has_backports() {
                steps.push(format!("sudo {program} host setup"));
            }
            if !plan.plain().is_empty() {
                steps.push(format!("sudo apt-get install {}", plan.plain().join(" ")));
            }
            steps
        }
    }
}

/// Where the distribution has no QEMU that is new enough.
fn container(program: &str) -> String {
    let mounted = match program.contains('/') {
        true => program.to_owned(),
        false => format!("$(command -v {program})"),
    };
    format!(
        "this distribution has no QEMU 9.2: use a container (docker run --rm --privileged --volume \
         {mounted}:/usr/local/bin/stackproof --volume stackproof:/root/.cache/stackproof debian:13 \
         sh -c 'stackproof host setup && stackproof e2e')"
    )
}

/// How the user gets at a device that is there and does not open.
pub fn device_step(path: &Path, state: &DeviceState) -> Option<String> {
    let DeviceState::Denied { group } = state else { return None };
    let path = path.display();
    Some(match group {
        Some(group) => format!("{path}: sudo usermod -aG {group} $USER, then log in again"),
        None => {
            format!("{path}: sudo chgrp kvm {path} && sudo chmod 0660 {path}, and join the group")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Mirrors;
    use crate::host::report::example;

    fn report(os: &str, absent: &[&str]) -> HostReport {
        let mut report = example();
        report.os = OsRelease::parse(os);
        report.apt_mirrors = Some(Mirrors::given("http://mirror.example.org/debian"));
        for need in report.needs.iter_mut().filter(|n| absent.contains(&n.name)) {
            need.state = NeedState::Missing;
        }
        report
    }

    fn first(os: &str, absent: &[&str]) -> String {
        let all = steps(&report(os, absent), HostScope::BuildImages, "stackproof");
        all.into_iter().next().unwrap_or_default()
    }

    #[test]
    fn each_distribution_gets_its_own_command() {
        let qemu = ["qemu-system-x86_64", "qemu-img"];
        for (os, wanted) in [
            (
                "ID=debian\nVERSION_CODENAME=trixie\n",
                "sudo apt-get install qemu-system-x86 qemu-utils",
            ),
            ("ID=debian\nVERSION_CODENAME=bookworm\n", "sudo stackproof host setup"),
            ("ID=ubuntu\nVERSION_ID=26.04\n", "sudo apt-get install qemu-system-x86 qemu-utils"),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", "sudo apt-get install qemu-system-x86"),
            ("ID=fedora\n", "sudo dnf install qemu-img qemu-system-x86-core"),
            ("ID=nixos\n", "nix-shell -p qemu"),
            ("ID=arch\n", "install qemu-system-x86_64 (9.2 or newer), qemu-img"),
            ("ID=\"centos\"\nID_LIKE=\"rhel fedora\"\n", "this distribution has no QEMU 9.2"),
            ("ID=debian\nVERSION_CODENAME=bullseye\n", "this distribution has no QEMU 9.2"),
        ] {
            let step = first(os, &qemu);
            assert!(step.starts_with(wanted), "{os}: {step}");
        }
    }

    #[test]
    fn a_missing_uidmap_is_one_plain_command() {
        let step = first("ID=debian\nVERSION_CODENAME=bookworm\n", &["newuidmap"]);
        assert_eq!(step, "sudo apt-get install uidmap");
    }

    #[test]
    fn a_host_that_only_cannot_build_is_shown_import() {
        let report = report("ID=nixos\n", &["mmdebstrap"]);
        let all = steps(&report, HostScope::BuildImages, "stackproof");
        assert!(all.last().unwrap().contains("stackproof images import DIR"), "{all:?}");
        assert_eq!(steps(&report, HostScope::RunLabs, "stackproof"), Vec::<String>::new());
    }

    #[test]
    fn a_denied_device_names_its_group() {
        let denied = DeviceState::Denied { group: Some("kvm".into()) };
        let step = device_step(Path::new("/dev/kvm"), &denied).unwrap();
        assert!(step.contains("sudo usermod -aG kvm $USER"), "{step}");
        assert_eq!(device_step(Path::new("/dev/kvm"), &DeviceState::Opens), None);
    }
}
