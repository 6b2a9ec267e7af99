//! A scratch root in which resources are observed and applied by real shells.

use crate::engine::batch::{self, OnFailure, Piece};
use crate::engine::observe::{Sight, observe};
use crate::engine::resource::{Resource, Script, Verdict};
use crate::engine::transport::Local;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

pub struct Root {
    pub dir: tempfile::TempDir,
    pub shell: Local,
}

/// One root for each shell of this host: dash by the name of `sh`, and busybox's where installed.
pub fn roots() -> Vec<Root> {
    let has_busybox = std::process::Command::new("busybox").arg("true").status().is_ok();
    let mut roots = vec![Root::new(None)];
    if has_busybox {
        roots.push(Root::new(Some(["busybox", "sh"])));
    }
    roots
}

/// Where the node's commands are stood in for: busybox would take its own applets instead, and a
/// node that has systemd has coreutils.
pub fn root() -> Root {
    Root::new(None)
}

impl Root {
    fn new(interpreter: Option<[&str; 2]>) -> Root {
        let dir = tempfile::tempdir().unwrap();
        let mut shell = Local::new(dir.path()).unwrap();
        if let Some(argv) = interpreter {
            shell = shell.interpreter(argv);
        }
        let root = Root { dir, shell };
        std::fs::create_dir_all(root.path("/bin")).unwrap();
        root
    }
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }
    pub fn put(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    pub fn get(&self, path: &str) -> String {
        std::fs::read_to_string(self.path(path)).unwrap()
    }
    pub fn mode(&self, path: &str) -> u32 {
        std::fs::metadata(self.path(path)).unwrap().permissions().mode() & 0o7777
    }
    /// A command of the node, in place of the host's.
    pub fn fake(&self, name: &str, script: &str) {
        let path = format!("/bin/{name}");
        self.put(&path, format!("#!/bin/sh\n{script}"));
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.path(&path), mode).unwrap();
    }
    pub async fn look(&self, resource: &dyn Resource) -> Sight {
        observe(&self.shell, &[resource], 5).await.unwrap().remove(0)
    }
    /// What a script of no resource does.
    pub async fn run(&self, script: Script) -> Piece {
        let pieces = batch::run(&self.shell, &[script], 10, OnFailure::GoOn).await.unwrap();
        pieces.into_iter().next().unwrap()
    }
    pub async fn apply(&self, resource: &dyn Resource, seen: &str) -> Piece {
        let script = [resource.apply(seen)];
        batch::run(&self.shell, &script, 5, OnFailure::Stop).await.unwrap().remove(0)
    }
    /// Differs, is applied, is the same. Returns what differed.
    pub async fn converges(&self, resource: &dyn Resource) -> Vec<String> {
        let sight = self.look(resource).await;
        let Verdict::Differs(lines) = sight.verdict else {
            panic!("{} should differ, seen: {}", resource.id(), sight.seen);
        };
        let piece = self.apply(resource, &sight.seen).await;
        let errors = String::from_utf8_lossy(&piece.stderr).into_owned();
        assert_eq!((piece.status, errors.as_str()), (0, ""), "{}", resource.id());
        self.is_same(resource).await;
        lines
    }
    pub async fn is_same(&self, resource: &dyn Resource) {
        let sight = self.look(resource).await;
        assert_eq!(sight.verdict, Verdict::Same, "{}: {}", resource.id(), sight.seen);
        // Nothing of ours is left on the node.
        let left: Vec<_> = std::fs::read_dir(self.path("/run")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// The user and group that run the tests.
pub fn me() -> (String, String) {
    let ask = |flag| {
        let out = std::process::Command::new("id").arg(flag).output().unwrap();
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    (ask("-un"), ask("-gn"))
}
