//! flake.nix, evaluated by the real `nix` without the network, against a stub of nixpkgs. The stub
//! (fixtures/nix-stub) has the attributes of its attributes.toml and no other. No test here builds
//! anything.
//!
//! Without `nix` the tests are listed as ignored, never as passed.

use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let missing = |program: &str| {
        let missing = Command::new(program).arg("--version").output().is_err();
        if missing && !arguments.list {
            eprintln!("not run: no `{program}` (Debian: apt-get install nix-bin shellcheck)");
        }
        missing
    };
    let (no_nix, no_shellcheck) = (missing("nix"), missing("shellcheck"));
    let test =
        |name, run: fn() -> Result<(), Failed>| Trial::test(name, run).with_ignored_flag(no_nix);
    let tests = vec![
        test("nix_accepts_the_flake_without_a_warning", accepted),
        test("every_package_app_check_and_shell_is_instantiated", instantiated),
        test("the_attributes_used_are_those_listed", attributes),
        test("an_attribute_that_is_not_listed_fails", unlisted),
        test("the_package_is_built_from_manifest_and_lock", package),
        test("the_wrapper_puts_qemu_alone_into_path", wrapper),
        test("a_changed_document_rebuilds_nothing", documents),
        test("the_source_is_all_that_cargo_reads", source),
        test("vmtest_fails_without_its_image", vmtest),
        test("the_apps_pass_shellcheck", shellcheck).with_ignored_flag(no_nix || no_shellcheck),
        test("without_a_lock_file_evaluation_fails", no_lock_file),
    ];
    libtest_mimic::run(&arguments, tests).exit_code()
}

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A copy of the source tree to change, and a Nix store that goes away with it.
struct Tree {
    folder: tempfile::TempDir,
}

impl Tree {
    fn new() -> Tree {
        let tree = Tree { folder: tempfile::tempdir().expect("a temporary folder") };
        for file in files(Path::new(ROOT)) {
            let to = tree.file(&file);
            fs::create_dir_all(to.parent().expect("below the folder")).expect("mkdir");
            fs::copy(Path::new(ROOT).join(&file), to).expect("copy");
        }
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path("flake").join(name)
    }

    fn append(&self, file: &str, text: &str) {
        let old = fs::read_to_string(self.file(file)).expect(file);
        fs::write(self.file(file), old + text).expect(file);
    }

    /// Standard output and standard error of `nix VERB` with the stub in the place of nixpkgs.
    fn nix(&self, verb: &[&str], attribute: &str) -> Result<(String, String), Failed> {
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
            .output()?;
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        if !out.status.success() {
            return Err(format!("nix {verb:?} {attribute}: {}\n{error}", out.status).into());
        }
        Ok((String::from_utf8(out.stdout)?, error))
    }

    /// What an expression makes of the package `p`.
    fn package(&self, expression: &str) -> Result<Value, Failed> {
        let verb = ["eval", "--json", "--apply", &format!("p: {expression}")];
        Ok(serde_json::from_str(&self.nix(&verb, "#packages.x86_64-linux.default")?.0)?)
    }

    /// Everything that the flake offers (derivations, and the programs of the apps), and what `nix`
    /// said meanwhile.
    fn instantiate(&self) -> Result<(Value, String), Failed> {
        let (mut outputs, mut said) = (json!({}), String::new());
        for (output, what) in [
            ("packages", "output.drvPath"),
            ("checks", "output.drvPath"),
            ("devShells", "output.drvPath"),
            // `nix flake check` warns where an app has no description, but not before Nix 2.26.
            ("apps", "assert output.meta.description != \"\"; output.program"),
        ] {
            let apply = format!("builtins.mapAttrs (_: output: {what})");
            let verb = ["eval", "--json", "--apply", &apply];
            let (out, error) = self.nix(&verb, &format!("#{output}.x86_64-linux"))?;
            outputs[output] = serde_json::from_str(&out)?;
            said.push_str(&error);
        }
        Ok((outputs, said))
    }

    /// The text of an app, which the stub writes into the store.
    fn script(&self, name: &str) -> Result<PathBuf, Failed> {
        let store = self.path("store/nix/store");
        files(&store)
            .iter()
            .find(|file| file.ends_with(&format!("-{name}.sh")))
            .map(|file| store.join(file))
            .ok_or_else(|| format!("no {name}.sh in {}", store.display()).into())
    }
}

/// The files below a folder, relative to it, apart from what git and cargo keep at its top.
fn files(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).expect("a folder").map(|entry| entry.expect("an entry")) {
            let path = entry.path();
            let kind = entry.file_type().expect("a type");
            if kind.is_dir() && ![folder.join(".git"), folder.join("target")].contains(&path) {
                open.push(path);
            } else if kind.is_file() {
                let name = path.strip_prefix(folder).expect("below the folder");
                found.insert(name.to_str().expect("text").to_owned());
            }
        }
    }
    found
}

fn accepted() -> Result<(), Failed> {
    let said = Tree::new().nix(&["flake", "check", "--no-build"], "")?.1;
    assert!(!said.contains("lacks attribute") && !said.contains("unknown"), "{said}");
    Ok(())
}

fn instantiated() -> Result<(), Failed> {
    let tree = Tree::new();
    let (outputs, _) = tree.instantiate()?;
    for (kind, names) in [
        ("packages", vec!["default"]),
        ("checks", vec!["fmt", "package"]),
        ("devShells", vec!["default"]),
        ("apps", vec!["default", "e2e", "vmtest"]),
    ] {
        let found: Vec<_> = outputs[kind].as_object().into_iter().flat_map(|o| o.keys()).collect();
        assert_eq!(found, names, "{kind}");
    }
    let drv = outputs["packages"]["default"].as_str().unwrap_or_default();
    assert!(tree.path("store").join(drv.trim_start_matches('/')).is_file(), "{drv}");
    assert_eq!(outputs["apps"]["default"], outputs["apps"]["e2e"]);
    let vmtest = outputs["apps"]["vmtest"].as_str().unwrap_or_default();
    assert!(vmtest.ends_with("-stackproof-vmtest/bin/stackproof-vmtest"), "{vmtest}");
    Ok(())
}

fn attributes() -> Result<(), Failed> {
    let list = fs::read_to_string(format!("{ROOT}/fixtures/nix-stub/attributes.toml"))?;
    let list: toml::Table = list.parse()?;
    let mut listed = BTreeSet::new();
    for (name, entry) in list["attributes"].as_table().into_iter().flatten() {
        let seen = entry["seen"].as_array().is_some_and(|seen| !seen.is_empty());
        assert!(seen && entry["in"].is_str(), "{name}: seen nowhere");
        listed.insert(name.as_str());
    }
    let (_, said) = Tree::new().instantiate()?;
    let used = said.lines().filter_map(|line| line.strip_prefix("trace: used: "));
    assert_eq!(used.collect::<BTreeSet<_>>(), listed);
    Ok(())
}

fn unlisted() -> Result<(), Failed> {
    let tree = Tree::new();
    let flake = fs::read_to_string(tree.file("flake.nix"))?;
    fs::write(tree.file("flake.nix"), flake.replace("pkgs.openssl", "pkgs.mmdebstrap"))?;
    fails(tree.instantiate(), "attribute 'mmdebstrap' missing")
}

fn no_lock_file() -> Result<(), Failed> {
    let tree = Tree::new();
    fs::remove_file(tree.file("Cargo.lock"))?;
    fails(tree.instantiate(), "Cargo.lock")
}

fn fails<T>(outcome: Result<T, Failed>, because: &str) -> Result<(), Failed> {
    match outcome {
        Ok(_) => Err(format!("evaluated all the same: {because}").into()),
        Err(e) if e.message().is_some_and(|message| message.contains(because)) => Ok(()),
        Err(e) => Err(e),
    }
}

fn package() -> Result<(), Failed> {
    let given = Tree::new().package(
        "{ inherit (p) pname version cargoTestFlags; lock = p.cargoDeps.name; \
           check = map (tool: tool.name) p.nativeCheckInputs; program = p.meta.mainProgram; }",
    )?;
    let wanted = json!({
        "pname": "stackproof",
        "version": env!("CARGO_PKG_VERSION"),
        "cargoTestFlags": ["--lib", "--bins"],
        "lock": "cargo-vendor-dir",
        "check": ["qemu_test", "util-linux"],
        "program": "stackproof",
    });
    assert_eq!(given, wanted);
    Ok(())
}

/// What builds images (mmdebstrap, apt, mke2fs) and newuidmap are the host's.
fn wrapper() -> Result<(), Failed> {
    let given = Tree::new().package("p.postInstall")?;
    let words: Vec<_> = given.as_str().unwrap_or_default().split_whitespace().collect();
    let [tools @ .., path] = words.as_slice() else { return Err("no wrapper".into()) };
    assert_eq!(tools, ["wrapProgram", "$out/bin/stackproof", "--prefix", "PATH", ":"]);
    assert!(path.ends_with("-qemu_test/bin") && !path.contains(':'), "{path}");
    Ok(())
}

/// Whether a file of the tree says nothing to cargo. Those of images/ are parts of recipes.
fn is_document(file: &str) -> bool {
    file.ends_with(".md") && !file.starts_with("images/")
}

fn documents() -> Result<(), Failed> {
    let tree = Tree::new();
    let (before, _) = tree.instantiate()?;
    for file in files(&tree.path("flake")).iter().filter(|file| is_document(file)) {
        tree.append(file, "\n");
    }
    for file in ["flake.nix", "Makefile", "fixtures/nix-stub/flake.nix"] {
        tree.append(file, "# changed\n");
    }
    fs::create_dir_all(tree.file(".github/workflows"))?;
    fs::write(tree.file(".github/workflows/new.yml"), "on: push\n")?;
    assert_eq!(tree.instantiate()?.0, before);

    tree.append("src/main.rs", "// changed\n");
    let (after, _) = tree.instantiate()?;
    for kind in ["packages", "checks", "apps"] {
        for (name, path) in after[kind].as_object().into_iter().flatten() {
            assert_ne!(*path, before[kind][name], "{kind} {name} is not rebuilt");
        }
    }
    Ok(())
}

fn source() -> Result<(), Failed> {
    let tree = Tree::new();
    let path = tree.package("p.src.outPath")?;
    let path = path.as_str().unwrap_or_default().trim_start_matches('/');
    let is_read = |file: &String| {
        let top = ["Cargo.lock", "Cargo.toml", "build.rs", "rustfmt.toml"].contains(&file.as_str());
        let below = ["examples", "fixtures", "images", "src", "tests", "vmtests", "xtask"];
        let below = below.iter().any(|folder| file.starts_with(&format!("{folder}/")));
        top || below && !is_document(file) && !file.starts_with("fixtures/nix-stub/")
    };
    let wanted: BTreeSet<_> = files(&tree.path("flake")).into_iter().filter(is_read).collect();
    assert_eq!(files(&tree.path("store").join(path)), wanted);
    Ok(())
}

/// Runs the app with programs of our own in the places of `stackproof` and `cargo`.
fn vmtest() -> Result<(), Failed> {
    let tree = Tree::new();
    tree.instantiate()?;
    let script = fs::read_to_string(tree.script("stackproof-vmtest")?)?;
    let program = script.split_whitespace().find(|word| word.ends_with("/bin/stackproof"));
    let ours = tree.path("stackproof").display().to_string();
    let script = script.replace(program.ok_or("the app does not call stackproof")?, &ours);
    fs::write(tree.path("app"), script)?;
    for (code, calls) in [
        (3, "stackproof images build probe-guest\n"),
        (0, "stackproof images build probe-guest\ncargo xtask vmtest a b\n"),
    ] {
        for name in ["stackproof", "cargo"] {
            let log = tree.path("log").display().to_string();
            let text = format!("#!/bin/sh\necho {name} \"$@\" >> {log}\nexit {code}\n");
            fs::write(tree.path(name), text)?;
            fs::set_permissions(tree.path(name), fs::Permissions::from_mode(0o755))?;
        }
        fs::write(tree.path("log"), "")?;
        let path = format!("{}:/usr/bin:/bin", tree.folder.path().display());
        let mut app = Command::new("bash");
        let status = app.arg(tree.path("app")).args(["a", "b"]).env("PATH", path).status()?;
        assert_eq!(
            (status.code(), fs::read_to_string(tree.path("log"))?),
            (Some(code), calls.into())
        );
    }
    Ok(())
}

fn shellcheck() -> Result<(), Failed> {
    let tree = Tree::new();
    tree.instantiate()?;
    let scripts = [tree.script("stackproof-e2e")?, tree.script("stackproof-vmtest")?];
    let out = Command::new("shellcheck").args(scripts).output()?;
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    Ok(())
}
