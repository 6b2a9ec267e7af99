//! What was measured, kept in the store for later runs: measuring takes seconds.

use super::{Accel, Judgement, Trial, probe};
use crate::lab::hypervisor::Hypervisor;
use crate::lab::qemu;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The file of one store. Nothing that it says is needed: where it is absent, of another host or
/// torn, everything is measured.
#[derive(Clone, Debug)]
pub struct Notes(PathBuf);

/// How much of what was noted is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// All is measured.
    Nothing,
    /// Which accelerator is the faster; how fast that one is now is measured.
    Choice,
    /// How fast it is too, where it was measured a short time ago.
    Speed,
}

/// A host may be busier a while later.
const FRESH: Duration = Duration::from_secs(300);

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Noted {
    /// Digest of all that it depends on.
    of: String,
    at: SystemTime,
    pub accel: Accel,
    pub kvm: Trial,
    pub tcg: Trial,
}

impl Noted {
    pub fn is_fresh(&self, now: SystemTime) -> bool {
        // What lies in the future is of a clock that was wrong.
        now.duration_since(self.at).is_ok_and(|age| age < FRESH)
    }
}

impl Notes {
    pub fn of_store(store: &Path) -> Notes {
        Notes(store.join("accelerator.json"))
    }

    /// None unless it was noted on this boot of the host, of this QEMU and this probe.
    pub(super) fn read(&self, hypervisor: &Hypervisor, kvm_opens: bool) -> Option<Noted> {
        let noted: Noted = serde_json::from_slice(&std::fs::read(&self.0).ok()?).ok()?;
        (noted.of == depends_on(hypervisor, kvm_opens)?).then_some(noted)
    }

    /// A run goes on without its notes: the next one measures again.
    pub(super) fn write(&self, hypervisor: &Hypervisor, kvm_opens: bool, judged: &Judgement) {
        let Some(of) = depends_on(hypervisor, kvm_opens) else { return };
        let (kvm, tcg) = (judged.kvm.clone(), judged.tcg.clone());
        let noted = Noted { of, at: SystemTime::now(), accel: judged.accel, kvm, tcg };
        let (Some(folder), Ok(text)) = (self.0.parent(), serde_json::to_vec(&noted)) else {
            return;
        };
        // Whole or not at all: others may read it at this moment.
        let _ = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
            file.write_all(&text)?;
            file.persist(&self.0)?;
            Ok(())
        });
    }
}

/// None where the kernel does not tell one boot from another.
fn depends_on(hypervisor: &Hypervisor, kvm_opens: bool) -> Option<String> {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    let qemu = hypervisor.qemu.as_os_str().as_encoded_bytes();
    let mut all = Sha256::new();
    for part in [&boot[..], qemu, hypervisor.release.as_bytes(), &probe::firmware()] {
        all.update((part.len() as u64).to_le_bytes());
        all.update(part);
    }
    for (option, value) in [Accel::Kvm, Accel::Tcg].into_iter().flat_map(qemu::base) {
        all.update(format!("{option} {value}\n"));
    }
    all.update([u8::from(hypervisor.sandbox), u8::from(kvm_opens)]);
    Some(all.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::accel::conclude;

    fn hypervisor(release: &str) -> Hypervisor {
        let (qemu, img) = ("/usr/bin/qemu".into(), "/usr/bin/img".into());
        Hypervisor { qemu, img, version: (10, 0, 0), release: release.into(), sandbox: true }
    }

    fn trials() -> (Trial, Trial) {
        let work = Duration::from_millis(360);
        let kvm = Trial::TooSlow { limit: Duration::from_secs(1), stages_done: 2 };
        (kvm, Trial::Worked { startup: Duration::from_millis(50), work })
    }

    #[test]
    fn what_was_noted_is_read_by_the_same_qemu_on_the_same_host_alone() {
        let store = tempfile::tempdir().unwrap();
        let (notes, qemu) = (Notes::of_store(store.path()), hypervisor("10.0.2"));
        let (kvm, tcg) = trials();
        assert_eq!(notes.read(&qemu, true), None);
        notes.write(&qemu, true, &conclude(kvm.clone(), tcg.clone()).unwrap());
        let noted = notes.read(&qemu, true).unwrap();
        assert_eq!((noted.accel, &noted.kvm, &noted.tcg), (Accel::Tcg, &kvm, &tcg));
        assert_eq!(notes.read(&hypervisor("10.0.3"), true), None, "another QEMU");
        assert_eq!(notes.read(&qemu, false), None, "/dev/kvm opens no more");
        std::fs::write(&notes.0, "{\"of\":").unwrap();
        assert_eq!(notes.read(&qemu, true), None, "torn");
        assert_eq!(std::fs::read_dir(store.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_speed_is_fresh_for_a_short_time_and_never_before_it_was_measured() {
        let (kvm, tcg) = trials();
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let noted = Noted { of: String::new(), at, accel: Accel::Tcg, kvm, tcg };
        assert!(noted.is_fresh(at) && noted.is_fresh(at + FRESH / 2));
        assert!(!noted.is_fresh(at + FRESH) && !noted.is_fresh(at - Duration::from_secs(1)));
    }
}
