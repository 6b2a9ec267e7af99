//! Every VM test with what it needs, and whether this host has it.

use stackproof::error::Error;
use stackproof::event::Events;
use stackproof::host::Memory;
use stackproof::images::build::{Builder, Built};
use stackproof::images::manifest::Manifest;
use stackproof::images::store::Store;
use stackproof::lab::admission::{Ledger, Reservation, Turn, Want};
use stackproof::wait::{Patience, Speed};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a test needs besides QEMU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    pub guests: u32,
    /// The memory of all its guests together, in MiB.
    pub memory: u64,
    /// The image `probe-guest`, built.
    pub probe_guest: bool,
    /// The image `debian-13-node`, built.
    pub node_image: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// `ROOM::what_holds`.
    pub path: &'static str,
    pub needs: Needs,
    /// Runs it on a thread of its own. An error or a panic fails the test.
    pub run: fn() -> Result<(), String>,
}

/// Guests with more memory than this are nodes: few of them fit at once.
const MICRO: u64 = 1024;

impl Test {
    pub fn name(&self) -> String {
        let size = match self.needs {
            Needs { memory, .. } if memory > MICRO => "node",
            Needs { guests: 0 | 1, .. } => "micro",
            _ => "pair",
        };
        format!("{size}::{}", self.path)
    }
}

/// For the labs that asked before, on the reference machine.
const OTHERS: Duration = Duration::from_secs(1200);

/// What the test's guests need, after all labs of this user that asked before: beside a run of e2e
/// on a small machine both would only thrash.
pub fn reserve(test: &Test) -> Result<Reservation, String> {
    let needs = test.needs;
    let want = Want::machines(&test.name(), needs.guests.into(), needs.memory << 20, needs.guests);
    let patience = Patience::new(Speed::new(1.0), Events::silent());
    let reserve = async {
        let ledger = Ledger::open(shared("reservations")?)?;
        ledger.reserve(&want, Turn::Within(OTHERS), &patience).await
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| e.to_string())?;
    runtime.block_on(reserve).map_err(|e| crate::bench::told(&e))
}

/// A folder of the store, which labs of other processes use too.
pub fn shared(folder: &str) -> stackproof::error::Result<PathBuf> {
    let store = store().ok_or_else(|| Error::host("the store cannot be opened"))?;
    Ok(store.root().join(folder))
}

/// The list. A test is a function in a file of its room beside this one.
pub fn all() -> Vec<Test> {
    [crate::micro::all(), crate::node::all()].concat()
}

/// What this host has.
pub struct Host {
    qemu: bool,
    /// MiB available now; `None` where the kernel does not say.
    memory: Option<u64>,
    probe_guest: Option<Built>,
    node_image: Option<Built>,
}

impl Host {
    pub fn look() -> Host {
        Host {
            qemu: on_path("qemu-system-x86_64"),
            memory: available_memory(),
            probe_guest: probe_guest(),
            node_image: node_image(),
        }
    }

    /// Why a test with these needs cannot run here, and what to do about it.
    pub fn lacks(&self, needs: &Needs) -> Option<String> {
        if !self.qemu {
            return Some("no qemu-system-x86_64: run `stackproof host setup`".into());
        }
        if let Some(memory) = self.memory
            && memory < needs.memory
        {
            return Some(format!("{} MiB of memory needed, {memory} available", needs.memory));
        }
        if needs.probe_guest && self.probe_guest.is_none() {
            return Some("not built: run `stackproof images build probe-guest`".into());
        }
        if needs.node_image && self.node_image.is_none() {
            return Some("not built: run `stackproof images build debian-13-node`".into());
        }
        None
    }
}

/// The store of the command line's default, so that `stackproof images build` fills it.
pub fn store() -> Option<Store> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let root = set("STACKPROOF_STORE").or_else(|| Some(cache()?.join("stackproof")))?;
    Store::open(root).ok()
}

/// The probe-guest of this source tree.
pub fn probe_guest() -> Option<Built> {
    built("probe-guest", &[])
}

/// The node image of this source tree, with the packages that its roles declare.
pub fn node_image() -> Option<Built> {
    let packages: Vec<String> = stackproof::roles::packages().into_iter().map(Into::into).collect();
    built("debian-13-node", &packages)
}

/// What was built of a recipe as it stands: one that was built from other inputs does not count.
fn built(name: &str, packages: &[String]) -> Option<Built> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = Manifest::load(&root.join(format!("images/{name}.toml"))).ok()?;
    let patience = Patience::new(Speed::new(1.0), Events::silent());
    let builder = Builder { store: store()?, given_mirrors: None, logs: PathBuf::new(), patience };
    builder.built(&manifest, packages).ok()?
}

fn on_path(tool: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()))
}

fn available_memory() -> Option<u64> {
    // In MiB.
    Some(Memory::look(Path::new("/")).ok()?.available >> 20)
}
