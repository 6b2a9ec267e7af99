use super::*;
use crate::event::Events;
use crate::images::digest::Algorithm;
use crate::images::fetch::Options;
use crate::images::fetch::server::{Reply, Server};
use std::path::Path;

const OLD: &[u8] = b"the old image";
const NEW: &[u8] = b"the new image";

fn sha256(content: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, content).hex()
}

fn publisher() -> Publisher {
    Publisher { options: Options::default(), events: Events::silent() }
}

fn parse(text: &str) -> Manifest {
    Manifest::parse(Path::new("images/tiny.toml"), text.to_owned()).unwrap()
}

/// A manifest with a build of July; `url`, `sums_url` and `newest` are below the server.
fn manifest(server: &Server, url: &str, sums_url: &str, newest: &str) -> Manifest {
    let newest = newest.replace("SERVER", &server.url(""));
    parse(&format!(
        "# Keep this comment.\nname = \"tiny\"\ndescription = \"Tiny (20260714.1)\"\nuser = \"u\"\n\
         format = \"qcow2\"\n\n[pin]\nurl = \"{}\"  # and this one\nsums_url = \"{}\"\nsize = 13\n\
         sha256 = \"{}\"\nnote = \"a note\"\n{newest}",
        server.url(url),
        server.url(sums_url),
        sha256(OLD)
    ))
}

/// A folder with a checksum file that lists builds of three dates.
fn flat_folder() -> Server {
    let sums = format!(
        "# x-9-20260714.1.qcow2: 13 bytes\nSHA256 (x-9-20260714.1.qcow2) = {}\n\
         SHA256 (x-9-20260801.0.qcow2) = {}\nSHA256 (x-9-20260801.10.qcow2) = {}\n\
         SHA256 (y-x-9-20270101.0.qcow2) = {}\nSHA256 (x-9-20270101.0.qcow2.xz) = {}\n\
         SHA256 (x-9-latest.qcow2) = {}\n",
        sha256(OLD),
        sha256(b"another"),
        sha256(NEW),
        sha256(b"no"),
        sha256(b"no"),
        sha256(NEW),
    );
    Server::start(move |request, _| match request.path.as_str() {
        "/images/CHECKSUM" => Reply::new(200, sums.clone()),
        "/images/x-9-20260714.1.qcow2" => Reply::new(200, OLD),
        "/images/x-9-20260801.10.qcow2" => Reply::new(200, NEW),
        _ => Reply::new(404, "<html>not here</html>"),
    })
}

const FLAT: &str = "\n[pin.newest]\nindex = \"SERVER/images/CHECKSUM\"\n\
                    url = \"SERVER/images/x-9-{build}.qcow2\"\n";

/// A folder of dated folders, each with its own checksum file.
fn dated_folders() -> Server {
    let index = "<a href=\"20260712-2537/\">20260712-2537/</a>\n<a href=\"20260801-2600/\">\
                 20260801-2600/</a>\n<a href=\"20260801-900/\">20260801-900/</a> 2026-08-01 09:00\n\
                 <a href=\"daily-20270101-1/\">x</a>\n<a href=\"latest/\">latest/</a>\n";
    let sums = format!("{}  x-20260801-2600.qcow2\n", sha256(NEW));
    Server::start(move |request, _| match request.path.as_str() {
        "/cloud/" => Reply::new(200, index),
        "/cloud/20260801-2600/SUMS" => Reply::new(200, sums.clone()),
        "/cloud/20260801-2600/x-20260801-2600.qcow2" => Reply::new(200, NEW),
        _ => Reply::new(404, ""),
    })
}

const DATED: &str = "\n[pin.newest]\nindex = \"SERVER/cloud/\"\n\
                     url = \"SERVER/cloud/{build}/x-{build}.qcow2\"\n\
                     sums_url = \"SERVER/cloud/{build}/SUMS\"\n";

#[tokio::test]
async fn a_pin_is_current_changed_or_gone() {
    let server = flat_folder();
    let of = |name: &str| manifest(&server, name, "/images/CHECKSUM", "");
    let old = of("/images/x-9-20260714.1.qcow2");
    assert_eq!(check(&old, &publisher()).await.unwrap(), PinState::Current);
    let other = of("/images/x-9-20260801.10.qcow2");
    let published = Digest::of(Algorithm::Sha256, NEW);
    assert_eq!(check(&other, &publisher()).await.unwrap(), PinState::Changed { published });
    let gone = of("/images/x-9-20250101.0.qcow2");
    assert_eq!(check(&gone, &publisher()).await.unwrap(), PinState::Gone);
}

#[tokio::test]
async fn a_check_names_what_is_missing() {
    let server = flat_folder();
    let url = "/images/x-9-20260714.1.qcow2";
    let without = manifest(&server, url, "/images/CHECKSUM", "").text;
    let line = without.lines().find(|l| l.starts_with("sums_url")).unwrap();
    let e = check(&parse(&without.replace(line, "")), &publisher()).await.unwrap_err();
    assert!(e.hint_text().unwrap().contains("sums_url"), "{e}");
    let e = check(&manifest(&server, url, "/nothing", ""), &publisher()).await.unwrap_err();
    assert!(e.message().contains("/nothing is not there"), "{e}");
    let e = renew(&manifest(&server, url, "/images/CHECKSUM", ""), &publisher()).await.unwrap_err();
    assert!(e.hint_text().unwrap().contains("[pin.newest]"), "{e}");
}

#[tokio::test]
async fn the_newest_build_of_a_flat_folder_is_written() {
    let server = flat_folder();
    let old = manifest(&server, "/images/x-9-20260714.1.qcow2", "/images/CHECKSUM", FLAT);
    let Renewal::Newer { build, text } = renew(&old, &publisher()).await.unwrap() else {
        panic!("a newer one is there")
    };
    assert_eq!(build.to_string(), "20260801.10");
    let expected = old
        .text
        .replace("20260714.1", "20260801.10")
        .replace(&sha256(OLD), &sha256(NEW))
        .replace("size = 13", &format!("size = {}", NEW.len()));
    assert_eq!(text, expected, "comments and layout stay");
    let again = renew(&parse(&text), &publisher()).await.unwrap();
    assert_eq!(again, Renewal::Newest(build));
}

#[tokio::test]
async fn the_newest_dated_folder_is_written() {
    let server = dated_folders();
    let url = "/cloud/20260712-2537/x-20260712-2537.qcow2";
    let old = manifest(&server, url, "/cloud/20260712-2537/SUMS", DATED);
    let Renewal::Newer { build, text } = renew(&old, &publisher()).await.unwrap() else {
        panic!("a newer one is there")
    };
    assert_eq!(build.to_string(), "20260801-2600", "numbers are compared as numbers");
    let pin = parse(&text).pin().unwrap().clone();
    assert_eq!(pin.url, server.url("/cloud/20260801-2600/x-20260801-2600.qcow2"));
    assert_eq!(pin.sums_url, Some(server.url("/cloud/20260801-2600/SUMS")));
    assert_eq!((pin.digest, pin.size), (Digest::of(Algorithm::Sha256, NEW), Some(13)));
}

#[tokio::test]
async fn an_index_without_builds_is_an_error() {
    let server = Server::start(|_, _| Reply::new(200, "<html>moved</html>"));
    let old = manifest(&server, "/images/x-9-20260714.1.qcow2", "/images/CHECKSUM", FLAT);
    let e = renew(&old, &publisher()).await.unwrap_err();
    assert!(e.message().contains("lists no build of tiny"), "{e}");
}

#[tokio::test]
async fn an_endless_checksum_file_is_refused() {
    let server = Server::start(|_, _| Reply::new(200, vec![b'x'; 1 << 20]).forever());
    let e = publisher().read_text(&server.url("/SUMS")).await.unwrap_err();
    assert!(e.to_string().contains("more than 4 MiB"), "{e}");
}

#[test]
fn another_algorithm_replaces_the_key() {
    let server = flat_folder();
    let old = manifest(&server, "/images/x-9-20260714.1.qcow2", "/images/CHECKSUM", "");
    let digest = Digest::of(Algorithm::Sha512, NEW);
    let pin = Pin { digest, size: None, ..old.pin().unwrap().clone() };
    let text = old.with_pin(&pin, None).unwrap();
    assert!(text.contains(&format!("sha512 = \"{}\"\n", digest.hex())), "{text}");
    assert!(!text.contains("sha256") && !text.contains("size"), "{text}");
    let with_size = parse(&text).with_pin(&Pin { size: Some(7), ..pin }, None).unwrap();
    assert!(with_size.contains("# and this one\nsize = 7\n"), "{with_size}");
}

#[test]
fn numbers_of_builds_are_read() {
    let of = |text| BuildNumber::at_start(text).map(|b| b.to_string());
    assert_eq!(of("20260714.1.qcow2").as_deref(), Some("20260714.1"));
    assert_eq!(of("20260712-2537/").as_deref(), Some("20260712-2537"));
    assert_eq!(of("20260712/").as_deref(), Some("20260712"));
    assert_eq!(of("20260712.qcow2").as_deref(), Some("20260712"));
    for none in ["2026071", "202607121", "latest", ""] {
        assert_eq!(of(none), None, "{none}");
    }
}
