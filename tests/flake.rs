//! The shape of flake.nix's outputs, evaluated by the real `nix` against a stub of nixpkgs
//! (fixtures/nix-stub), without the network. What the real nixpkgs makes of it is not tested here.
//!
//! Without `nix` the tests are listed as ignored, never as passed.

use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = Command::new("nix").arg("--version").output().is_err();
    if missing && !arguments.list {
        eprintln!("not run: no `nix`: apt-get install nix-bin");
    }
    let test =
        |name, run: fn() -> Result<(), Failed>| Trial::test(name, run).with_ignored_flag(missing);
    let tests = vec![
        test("the_outputs_are_a_package_two_apps_checks_and_a_shell", outputs),
        test("nix_itself_accepts_the_flake", accepted),
        test("the_package_is_built_from_the_lock_file_with_the_manifests_version", package),
        test("an_app_starts_the_program_it_is_named_after", apps),
        test("without_a_lock_file_evaluation_fails_instead_of_passing", no_lock_file),
    ];
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// The parts of the source tree that evaluation reads, in a folder of their own (a `path:` flake is
/// copied whole, and `target/` is large), and a Nix store that goes away with it.
struct Tree {
    folder: tempfile::TempDir,
}

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

impl Tree {
    fn new() -> Tree {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("flake")).expect("mkdir");
        for file in ["flake.nix", "Cargo.toml", "Cargo.lock"] {
            std::fs::copy(Path::new(ROOT).join(file), folder.path().join("flake").join(file))
                .expect("copy");
        }
        Tree { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Standard output of `nix ARGUMENTS` with the flake and the stub in place.
    fn nix(&self, verb: &[&str], attribute: &str, more: &[&str]) -> Result<String, Failed> {
        let out = Command::new("nix")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .args(["--extra-experimental-features", "nix-command flakes", "--offline", "--store"])
            .arg(self.path("store"))
            .args(verb)
            .arg(format!("path:{}{attribute}", self.path("flake").display()))
            .args(["--no-write-lock-file", "--override-input", "nixpkgs"])
            .arg(format!("path:{ROOT}/fixtures/nix-stub"))
            .args(more)
            .output()?;
        let error = String::from_utf8_lossy(&out.stderr);
        if !out.status.success() {
            return Err(format!("nix {verb:?} {attribute}: {}\n{error}", out.status).into());
        }
        Ok(String::from_utf8(out.stdout)?)
    }

    fn eval(&self, attribute: &str) -> Result<serde_json::Value, Failed> {
        Ok(serde_json::from_str(&self.nix(&["eval", "--json"], attribute, &[])?)?)
    }
}

fn outputs() -> Result<(), Failed> {
    let shown: serde_json::Value =
        serde_json::from_str(&Tree::new().nix(&["flake", "show", "--json"], "", &[])?)?;
    for (path, kind) in [
        ("/packages/x86_64-linux/default", "derivation"),
        ("/apps/x86_64-linux/default", "app"),
        ("/apps/x86_64-linux/e2e", "app"),
        ("/apps/x86_64-linux/vmtest", "app"),
        ("/checks/x86_64-linux/package", "derivation"),
        ("/checks/x86_64-linux/fmt", "derivation"),
        ("/devShells/x86_64-linux/default", "derivation"),
    ] {
        let seen = shown.pointer(path).and_then(|o| o.get("type"));
        if seen.and_then(|t| t.as_str()) != Some(kind) {
            return Err(format!("{path}: expected a {kind}, seen {seen:?} in {shown:#}").into());
        }
    }
    Ok(())
}

fn accepted() -> Result<(), Failed> {
    Tree::new().nix(&["flake", "check", "--no-build"], "", &[]).map(drop)
}

fn package() -> Result<(), Failed> {
    let given = Tree::new().eval("#packages.x86_64-linux.default.given")?;
    let given: serde_json::Value = serde_json::from_str(given.as_str().unwrap_or_default())?;
    assert_eq!(given["pname"], "stackproof");
    assert_eq!(given["version"], env!("CARGO_PKG_VERSION"));
    let lock = given["cargoLock"]["lockFile"].as_str().unwrap_or_default();
    assert!(lock.ends_with("Cargo.lock"), "{given:#}");
    // Unit tests that run in the build fail without them.
    let tools = given["nativeCheckInputs"].as_array().cloned().unwrap_or_default();
    for tool in ["qemu", "mmdebstrap", "e2fsprogs"] {
        let named = |t: &serde_json::Value| t.as_str().is_some_and(|t| t.ends_with(tool));
        assert!(tools.iter().any(named), "no {tool}: {given:#}");
    }
    Ok(())
}

fn apps() -> Result<(), Failed> {
    let tree = Tree::new();
    for app in ["e2e", "vmtest"] {
        let path = tree.eval(&format!("#apps.x86_64-linux.{app}.program"))?;
        let program = format!("/bin/stackproof-{app}");
        assert!(path.as_str().unwrap_or_default().ends_with(&program), "{path}");
    }
    Ok(())
}

fn no_lock_file() -> Result<(), Failed> {
    let tree = Tree::new();
    std::fs::remove_file(tree.path("flake/Cargo.lock"))?;
    match tree.eval("#packages.x86_64-linux.default.name") {
        Ok(name) => Err(format!("{name} was evaluated without Cargo.lock").into()),
        Err(e) if e.message().is_some_and(|m| m.contains("lockFile")) => Ok(()),
        Err(e) => Err(e),
    }
}
