//! The program as a person meets it: help, exit codes, what is on standard output and what is not.

use std::process::{Command, Output};

fn stackproof(arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().expect("a temporary folder");
    Command::new(env!("CARGO_BIN_EXE_stackproof"))
        .args(arguments)
        .env("XDG_CACHE_HOME", home.path())
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_goes_to_standard_output_and_lists_verbs_and_exit_codes() {
    let out = stackproof(&["--help"]);
    assert!(out.status.success());
    let help = text(&out.stdout);
    for wanted in ["e2e", "images", "host", "Exit codes:", "130  interrupted", "STACKPROOF_STORE"] {
        assert!(help.contains(wanted), "no {wanted} in:\n{help}");
    }
}

#[test]
fn a_wrong_option_exits_2_and_suggests_the_right_one() {
    let out = stackproof(&["e2e", "--instance-imag", "x"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("--instance-image"), "{}", text(&out.stderr));
    assert!(out.stdout.is_empty());
}

#[test]
fn a_lab_that_is_not_there_exits_2_and_names_it_and_the_next_step() {
    let out = stackproof(&["e2e", "--lab", "no-such-lab"]);
    let err = text(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{err}");
    assert!(err.contains("no-such-lab") && err.contains("next:"), "{err}");
}
