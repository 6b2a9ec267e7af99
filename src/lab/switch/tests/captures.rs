//! Captures, read back with a parser of their own.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What is in a pcapng file.
#[derive(Debug, Default)]
struct File {
    interfaces: Vec<String>,
    /// Interface, direction as in `epb_flags`, time in nanoseconds, frame.
    packets: Vec<(usize, u32, u64, Vec<u8>)>,
    /// Interface, received, dropped.
    statistics: Vec<(usize, u64, u64)>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

/// The options from `at` on: each is aligned, and the last is the end's.
fn options(body: &[u8], mut at: usize) -> Vec<(u16, Vec<u8>)> {
    let mut all = Vec::new();
    loop {
        let code = u16::from_le_bytes(*body[at..].first_chunk().unwrap());
        let length = usize::from(u16::from_le_bytes(*body[at + 2..].first_chunk().unwrap()));
        at += 4;
        if code == 0 {
            assert_eq!((length, at), (0, body.len()), "the end is at the end");
            return all;
        }
        all.push((code, body[at..at + length].to_vec()));
        let end = at + length.next_multiple_of(4);
        assert!(body[at + length..end].iter().all(|pad| *pad == 0));
        at = end;
    }
}

fn read(path: &Path) -> File {
    let bytes = std::fs::read(path).unwrap();
    let mut file = File::default();
    let mut at = 0;
    while at < bytes.len() {
        let (kind, length) = (u32_at(&bytes, at), u32_at(&bytes, at + 4) as usize);
        assert_eq!(length % 4, 0);
        assert_eq!(u32_at(&bytes, at + length - 4) as usize, length, "both lengths");
        let body = &bytes[at + 8..at + length - 4];
        assert_eq!(kind == 0x0a0d_0d0a, at == 0, "the section header is first, and alone");
        match kind {
            0x0a0d_0d0a => {
                assert_eq!(u32_at(body, 0), 0x1a2b_3c4d);
                assert_eq!(body[4..8], [1, 0, 0, 0]);
                options(body, 16);
            }
            1 => {
                assert_eq!(body[..8], [1, 0, 0, 0, 0, 0, 0, 0], "Ethernet, whole frames");
                let options = options(body, 8);
                assert_eq!(options[1], (9, vec![9]), "nanoseconds");
                file.interfaces.push(String::from_utf8(options[0].1.clone()).unwrap());
            }
            5 => {
                let options = options(body, 12);
                let count = |i: usize| u64::from_le_bytes(*options[i].1.first_chunk().unwrap());
                assert_eq!((options[0].0, options[1].0), (4, 5));
                file.statistics.push((u32_at(body, 0) as usize, count(0), count(1)));
            }
            6 => {
                let interface = u32_at(body, 0) as usize;
                assert!(interface < file.interfaces.len(), "described before");
                let time = u64::from(u32_at(body, 4)) << 32 | u64::from(u32_at(body, 8));
                let length = u32_at(body, 12) as usize;
                assert_eq!(u32_at(body, 16) as usize, length);
                let options = options(body, 20 + length.next_multiple_of(4));
                assert_eq!(options[0].0, 2);
                let frame = body[20..20 + length].to_vec();
                file.packets.push((interface, u32_at(&options[0].1, 0), time, frame));
            }
            other => panic!("a block of type {other}"),
        }
        at += length;
    }
    file
}

fn file(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("n.pcapng")
}

const IN: u32 = 1;
const OUT: u32 = 2;

#[tokio::test]
async fn a_network_is_captured_as_its_machines_see_it_behind_their_faults() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir);
    std::fs::write(&path, "older").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let net = Switch::new().network("n");
    let ((mut a, _pa), (mut b, _pb)) = (plug(&net, "a"), plug(&net, "b"));
    let capture = net.capture(None, &path, None).unwrap();
    let mut late = net.station("late");
    let (odd, even) = (frame(BROADCAST, A, b"odd"), frame(BROADCAST, B, b"even"));
    b.sees_only(&mut a, &odd).await;
    a.sees_only(&mut b, &even).await;
    for _ in 0..2 {
        soon(late.from_switch.recv()).await.unwrap();
    }
    net.set_fault("b", Direction::To, Some("loss=100%".parse().unwrap())).unwrap();
    let lost = frame(BROADCAST, A, b"not at b");
    a.send(&lost).await;
    assert_eq!(soon(late.from_switch.recv()).await.unwrap(), lost);
    until(|| capture.captured().frames == 8).await;
    let captured = soon(capture.finish()).await.unwrap();

    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(captured.bytes, std::fs::metadata(&path).unwrap().len());
    let file = read(&path);
    assert_eq!(file.interfaces, ["a", "b", "late"]);
    let mut seen: Vec<_> =
        file.packets.iter().map(|(i, way, _, frame)| (*i, *way, frame.clone())).collect();
    let mut expected = vec![
        (0, OUT, odd.clone()),
        (1, IN, odd.clone()),
        (2, IN, odd),
        (1, OUT, even.clone()),
        (0, IN, even.clone()),
        (2, IN, even),
        (0, OUT, lost.clone()),
        (2, IN, lost),
    ];
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected);
    assert!(file.packets.is_sorted_by_key(|p| p.2) && file.packets[0].2 > 1 << 60);
    assert_eq!(file.statistics, [(0, 3, 0), (1, 2, 0), (2, 3, 0)]);
    assert!(net.0.plugged().iter().filter(|p| p.name != "b").all(|port| port.is_plain()));
    a.send(&frame(BROADCAST, A, b"after the end")).await;
    soon(late.from_switch.recv()).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), captured.bytes);
    another_reader_agrees(&path, 8);
}

/// tcpdump, where there is one.
fn another_reader_agrees(path: &Path, frames: usize) {
    let out = std::process::Command::new("tcpdump").args(["-n", "-e", "-r"]).arg(path).output();
    let Ok(out) = out else { return };
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(text.lines().filter(|l| l.contains("02:00:00:00:00:0")).count(), frames, "{text}");
}

#[tokio::test]
async fn one_port_is_captured_alone_and_again_when_it_is_plugged_anew() {
    let dir = tempfile::tempdir().unwrap();
    let net = Switch::new().network("n");
    let ((mut a, _pa), (mut b, pb), (mut c, _pc)) =
        (plug(&net, "a/n"), plug(&net, "b/n"), plug(&net, "c/n"));
    let capture = net.capture(Some("b"), &file(&dir), None).unwrap();
    b.sees_only(&mut a, &frame(BROADCAST, A, b"one")).await;
    drop((b, pb));
    let (mut b, _pb) = plug(&net, "b/n");
    b.sees_only(&mut c, &frame(BROADCAST, C, b"two")).await;
    until(|| capture.captured().frames == 2).await;
    // Not finished but dropped: complete all the same.
    drop(capture);
    let file = read(&file(&dir));
    assert_eq!(file.interfaces, ["b/n"]);
    let frames: Vec<_> = file.packets.iter().map(|p| (p.1, p.3.clone())).collect();
    assert_eq!(frames, [(IN, frame(BROADCAST, A, b"one")), (IN, frame(BROADCAST, C, b"two"))]);
    assert_eq!(file.statistics, [(0, 2, 0)]);
}

#[tokio::test]
async fn a_bounded_file_stays_below_its_bound_and_tells_what_is_missing() {
    const MOST: u64 = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let net = Switch::new().network("n");
    let (a, mut b) = (net.station("a"), net.station("b"));
    let capture = net.capture(Some("b"), &file(&dir), Some(MOST)).unwrap();
    for n in 0..100u8 {
        a.to_switch.send(frame(BROADCAST, A, &[n; 1000]).into()).await.unwrap();
        soon(b.from_switch.recv()).await.unwrap();
    }
    until(|| capture.captured().frames + capture.captured().dropped == 100).await;
    let captured = soon(capture.finish()).await.unwrap();
    assert!(captured.bytes <= MOST && captured.dropped > 0, "{captured:?}");
    let file = read(&file(&dir));
    assert_eq!(file.packets.len() as u64, captured.frames);
    assert_eq!(file.statistics, [(0, 100, captured.dropped)]);
}

#[tokio::test]
async fn a_full_disk_ends_the_capture_with_its_reason_and_not_the_network() {
    let net = Switch::new().network("n");
    let (a, mut b) = (net.station("a"), net.station("b"));
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode();
    let before = mode("/dev/full");
    let capture = net.capture(None, "/dev/full".as_ref(), None).unwrap();
    for n in 0..100u8 {
        a.to_switch.send(frame(BROADCAST, A, &[n]).into()).await.unwrap();
        assert_eq!(soon(b.from_switch.recv()).await.unwrap(), frame(BROADCAST, A, &[n]));
    }
    let error = soon(capture.finish()).await.unwrap_err();
    assert!(error.to_string().contains("/dev/full is not complete: No space left"), "{error}");
    assert_eq!(mode("/dev/full"), before, "a device is left as it is");
    let error = net.capture(None, "/nowhere/file".as_ref(), None).unwrap_err();
    assert!(error.to_string().contains("/nowhere/file: No such file"), "{error}");
}
