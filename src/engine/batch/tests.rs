use super::*;
use crate::engine::resource::Input;
use crate::engine::resources::testing::roots;
use crate::engine::transport::Canned;

#[tokio::test]
async fn each_fragment_has_its_own_output_status_and_errors() {
    for root in roots() {
        let scripts = [
            Script::new("printf 'no newline'"),
            Script::new("echo out; echo err >&2; exit 3"),
            Script::new("cd /; X=1; cat; echo done"),
            Script::new("echo \"[$X]\"; printf 'a\\0b'"),
        ];
        let pieces = run(&root.shell, &scripts, 5, OnFailure::GoOn).await.unwrap();
        let texts: Vec<String> = pieces.iter().map(Piece::text).collect();
        assert_eq!(texts, ["no newline", "out\n", "done\n", "[]\na\0b"]);
        assert_eq!(pieces.iter().map(|p| p.status).collect::<Vec<_>>(), [0, 3, 0, 0]);
        assert_eq!(pieces[1].stderr, b"err\n");
        assert_eq!(pieces[0].stderr, b"");
    }
}

#[tokio::test]
async fn inputs_are_private_exact_and_gone_afterwards() {
    for root in roots() {
        let all: Vec<u8> = (0..=255).chain(*b"\n'%\\").collect();
        let show =
            "cat \"$IN/it's\"; for f in \"$IN\"/*; do ls -ld \"$f\" \"$IN\" | cut -c1-10; done >&2";
        let script = Script::new(show).input("it's", Input::SecretBytes(all.clone()));
        let scripts = [Script::new("true"), script];
        let pieces = run(&root.shell, &scripts, 5, OnFailure::GoOn).await.unwrap();
        assert_eq!(pieces[1].stdout, all);
        assert_eq!(pieces[1].stderr_tail(2), ["drwx------", "-rw-------"]);
        assert_eq!(std::fs::read_dir(root.path("/run")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_failure_stops_a_change_but_not_an_observation() {
    for root in roots() {
        let scripts = [Script::new("true"), Script::new("exit 9"), Script::new("echo ran")];
        let pieces = run(&root.shell, &scripts, 5, OnFailure::Stop).await.unwrap();
        assert_eq!(pieces.iter().map(|p| p.status).collect::<Vec<_>>(), [0, 9]);
        let pieces = run(&root.shell, &scripts, 5, OnFailure::GoOn).await.unwrap();
        assert_eq!(pieces[2].text(), "ran\n");
    }
}

#[test]
fn a_script_cut_on_the_way_runs_nothing() {
    let whole = build("t", &[Script::new("echo ran")], 5, OnFailure::GoOn);
    for at in (0..whole.len() - 2).step_by(7) {
        let mut sh = std::process::Command::new("sh")
            .arg("-s")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut sh.stdin.take().unwrap(), &whole.as_bytes()[..at]).unwrap();
        assert_eq!(sh.wait_with_output().unwrap().stdout, b"", "cut at {at}");
    }
}

#[tokio::test]
async fn a_shell_that_ends_early_is_an_error_with_its_last_words() {
    let stderr = b"sudo: a password is required\n";
    let liar = Canned::new(|| Ok(Output { status: 1, stdout: vec![], stderr: stderr.to_vec() }));
    let e = run(&liar, &[Script::new("true")], 5, OnFailure::GoOn).await.unwrap_err();
    assert_eq!(e.evidence_lines(), ["sudo: a password is required"]);
}
