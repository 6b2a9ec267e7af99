use super::super::digest::Algorithm;
use super::super::manifest::NewestRule;
use super::*;
use crate::wait::Speed;
use server::{Reply, Request, Server};
use std::path::Path;
use tokio::sync::mpsc::UnboundedReceiver;

/// A qcow2 image that QEMU made, and some data behind its tables; `seed` makes the data differ.
fn image(seed: u8) -> Vec<u8> {
    let mut image = fixture("plain");
    image.extend((0..300_000u32).map(|i| (i % 251) as u8 ^ seed));
    image
}

fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/fixtures/images/qcow2/{name}.qcow2", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
    manifest: Manifest,
    options: Options,
    patience: Patience,
    events: UnboundedReceiver<crate::event::Stamped>,
}

impl Bench {
    /// A store, and the pin of `content` at `urls`.
    fn new(content: &[u8], urls: &[String]) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let digest = Digest::of(Algorithm::Sha256, content);
        let text = format!(
            "name = \"tiny\"\ndescription = \"\"\nuser = \"u\"\nformat = \"qcow2\"\n[pin]\n\
             url = \"{}\"\nmirrors = {:?}\nsha256 = \"{}\"\n",
            urls[0],
            &urls[1..],
            digest.hex()
        );
        let manifest = Manifest::parse(Path::new("images/tiny.toml"), text).unwrap();
        let (events, seen) = Events::channel();
        Bench {
            _dir: dir,
            store,
            manifest,
            options: Options {
                leave_free: 0,
                pause: Duration::from_millis(10),
                ..Options::default()
            },
            patience: Patience::new(Speed::new(1.0), events),
            events: seen,
        }
    }

    fn pin(&mut self) -> &mut Pin {
        match &mut self.manifest.kind {
            super::super::manifest::Kind::Pin(pin) => pin,
            other => panic!("not a pin: {other:?}"),
        }
    }

    async fn fetch(&self) -> Result<PathBuf> {
        fetch(&self.store, &self.manifest, &self.options, &self.patience).await
    }

    #[track_caller]
    fn nothing_landed(&self) {
        let digest = self.manifest.pin().unwrap().digest;
        assert_eq!(self.store.blob(&digest), None, "it must not be in the store");
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        self.nothing_landed();
        let partial: Vec<_> =
            std::fs::read_dir(self.store.root().join("partial")).unwrap().collect();
        assert!(partial.is_empty(), "{partial:?}");
    }
}

fn serve(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> (Server, String) {
    let server = Server::start(answer);
    let url = server.url("/d/tiny.img");
    (server, url)
}

#[track_caller]
fn says(e: &Error, what: &str) {
    let all = format!("{e}\n{}\n{:?}", e.evidence_lines().join("\n"), e.hint_text());
    assert!(all.contains(what), "expected `{what}` in:\n{all}");
}

#[tokio::test]
async fn a_good_file_lands_whole_with_its_progress() {
    let (server, url) = serve(|r, _| Reply::file(r, &image(0), "\"a\""));
    let mut b = Bench::new(&image(0), &[url]);
    b.pin().size = Some(image(0).len() as u64);
    let path = b.fetch().await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), image(0));
    let requests = server.requests();
    assert_eq!((requests.len(), requests[0].path.as_str()), (1, "/d/tiny.img"));
    assert_eq!(requests[0].header("accept-encoding"), Some("identity"));
    assert_eq!(requests[0].range(), None);
    let (mut last, mut ended) = (None, false);
    while let Ok(e) = b.events.try_recv() {
        match e.event {
            Event::Progress { what, done, total, unit: Unit::Bytes } => {
                assert_eq!(what, "fetch tiny");
                last = Some((done, total));
            }
            Event::ProgressEnded { what, ok: true } => ended = what == "fetch tiny",
            _ => {}
        }
    }
    let size = image(0).len() as u64;
    assert_eq!((last, ended), (Some((size, Some(size))), true));
    assert!(std::fs::read_dir(b.store.root().join("partial")).unwrap().next().is_none());
}

#[tokio::test]
async fn what_is_there_is_not_asked_for_again() {
    let (server, url) = serve(|r, _| Reply::file(r, &image(0), "\"a\""));
    let b = Bench::new(&image(0), &[url]);
    let first = b.fetch().await.unwrap();
    assert_eq!(b.fetch().await.unwrap(), first);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn two_fetches_at_once_ask_once() {
    let (server, url) = serve(|r, _| Reply::file(r, &image(0), "\"a\""));
    let b = Bench::new(&image(0), &[url]);
    let (one, two) = tokio::join!(b.fetch(), b.fetch());
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_body_without_a_length_is_taken_too() {
    let (_server, url) = serve(|_, _| Reply::new(200, image(0)).without_length());
    let b = Bench::new(&image(0), &[url]);
    assert_eq!(std::fs::read(b.fetch().await.unwrap()).unwrap(), image(0));
}

#[tokio::test]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    let (server, url) = serve(|r, before| match before {
        0 => Reply::file(r, &image(0), "\"a\"").cut_at(100_000),
        _ => Reply::file(r, &image(0), "\"a\""),
    });
    let b = Bench::new(&image(0), &[url]);
    assert_eq!(std::fs::read(b.fetch().await.unwrap()).unwrap(), image(0));
    let second = &server.requests()[1];
    assert_eq!((second.range(), second.header("if-range")), (Some(100_000), Some("\"a\"")));
    assert_eq!(server.requests().len(), 2);
}

/// Fetches until the connection is cut, then again with `later` as the server's answer to every
/// further request.
async fn taken_up_later(
    content: Vec<u8>,
    first: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    later: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> Later {
    let (server, url) = serve(move |r, before| match before {
        0 => first(r).cut_at(100_000),
        // The take-up within the same run fails, and the partial file stays for the next.
        1 => Reply::new(410, "gone"),
        _ => later(r),
    });
    let mut b = Bench::new(&content, &[url]);
    says(&b.fetch().await.unwrap_err(), "410");
    b.nothing_landed();
    let out = b.fetch().await;
    let out = out.map(|path| std::fs::read(path).unwrap());
    if out.is_err() {
        b.nothing_landed();
    }
    let mut mixed = false;
    while let Ok(e) = b.events.try_recv() {
        mixed |= matches!(e.event, Event::Note { text, .. } if text.contains("wrong digest"));
    }
    Later { requests: server.requests().split_off(2), out, mixed }
}

struct Later {
    requests: Vec<Request>,
    out: Result<Vec<u8>>,
    /// Whether the digest was what found out that two files had been mixed.
    mixed: bool,
}

#[tokio::test]
async fn a_later_process_takes_up_what_an_earlier_one_left() {
    let good = |r: &Request| Reply::file(r, &image(0), "\"a\"");
    let Later { requests, out, mixed } = taken_up_later(image(0), good, good).await;
    assert_eq!(out.unwrap(), image(0));
    assert!(!mixed);
    assert_eq!((requests.len(), requests[0].range()), (1, Some(100_000)));
}

#[tokio::test]
async fn a_server_that_ignores_ranges_does_not_corrupt_the_file() {
    let Later { requests, out, mixed } = taken_up_later(
        image(0),
        |r| Reply::file(r, &image(0), "\"a\""),
        |_| Reply::new(200, image(0)).header("ETag", "\"a\""),
    )
    .await;
    assert_eq!(out.unwrap(), image(0));
    assert!(!mixed);
    assert_eq!((requests.len(), requests[0].range()), (1, Some(100_000)));
}

#[tokio::test]
async fn a_file_that_was_replaced_meanwhile_is_fetched_from_its_start() {
    // The pin is of the new file; the part that is here, of the old.
    let Later { requests, out, mixed } = taken_up_later(
        image(1),
        |r| Reply::file(r, &image(0), "\"old\""),
        |r| Reply::file(r, &image(1), "\"new\""),
    )
    .await;
    assert_eq!(out.unwrap(), image(1));
    assert!(!mixed);
    assert_eq!(requests[0].header("if-range"), Some("\"old\""));
}

#[tokio::test]
async fn a_server_that_ignores_if_range_is_found_out_by_its_etag() {
    let Later { requests, out, mixed } = taken_up_later(
        image(1),
        |r| Reply::file(r, &image(0), "\"old\""),
        |r| match r.range() {
            Some(from) => Reply::part(&image(1), from).header("ETag", "\"new\""),
            None => Reply::new(200, image(1)).header("ETag", "\"new\""),
        },
    )
    .await;
    assert_eq!(out.unwrap(), image(1));
    assert!(!mixed);
    assert_eq!((requests.len(), requests[1].range()), (2, None));
}

#[tokio::test]
async fn a_mixture_that_no_header_betrays_is_found_out_by_its_digest_and_fetched_whole() {
    let Later { requests, out, mixed } = taken_up_later(
        image(1),
        |_| Reply::new(200, image(0)).header("Last-Modified", "Sat, 01 Aug 2026 00:00:00 GMT"),
        |r| match r.range() {
            Some(from) => Reply::part(&image(1), from),
            None => Reply::new(200, image(1)),
        },
    )
    .await;
    assert_eq!(out.unwrap(), image(1));
    assert!(mixed);
    assert_eq!(requests[0].header("if-range"), Some("Sat, 01 Aug 2026 00:00:00 GMT"));
    assert_eq!((requests.len(), requests[1].range()), (2, None));
}

#[tokio::test]
async fn another_part_than_was_asked_for_is_not_appended() {
    let Later { requests, out, mixed } = taken_up_later(
        image(0),
        |r| Reply::file(r, &image(0), "\"a\""),
        |r| match r.range() {
            Some(from) => Reply::part(&image(0), from + 1),
            None => Reply::new(200, image(0)),
        },
    )
    .await;
    assert_eq!(out.unwrap(), image(0));
    assert!(!mixed);
    assert_eq!((requests.len(), requests[1].range()), (2, None));
}

#[tokio::test]
async fn without_a_strong_validator_nothing_is_taken_up() {
    let weak = |r: &Request| Reply::file(r, &image(0), "W/\"a\"");
    let Later { requests, out, mixed } = taken_up_later(image(0), weak, weak).await;
    assert_eq!(out.unwrap(), image(0));
    assert!(!mixed);
    assert_eq!((requests.len(), requests[0].range()), (1, None));
}

#[tokio::test]
async fn a_range_that_cannot_be_satisfied_starts_over() {
    let Later { requests, out, mixed } = taken_up_later(
        image(0),
        |r| Reply::file(r, &image(0), "\"a\""),
        |r| match r.range() {
            Some(_) => Reply::new(416, ""),
            None => Reply::new(200, image(0)),
        },
    )
    .await;
    assert_eq!(out.unwrap(), image(0));
    assert!(!mixed);
    assert_eq!(requests.len(), 2);
}

#[tokio::test]
async fn a_part_whose_bytes_were_changed_on_disk_does_not_get_in() {
    let (server, url) = serve(|r, before| match before {
        0 => Reply::file(r, &image(0), "\"a\"").cut_at(100_000),
        1 => Reply::new(410, ""),
        _ => Reply::file(r, &image(0), "\"a\""),
    });
    let b = Bench::new(&image(0), &[url]);
    b.fetch().await.unwrap_err();
    let folder = b.store.root().join("partial");
    let part = folder.join(format!("sha256_{}", b.manifest.pin().unwrap().digest.hex()));
    let mut bytes = std::fs::read(&part).unwrap();
    bytes[50_000] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    assert_eq!(std::fs::read(b.fetch().await.unwrap()).unwrap(), image(0));
    let ranges: Vec<_> = server.requests()[2..].iter().map(Request::range).collect();
    assert_eq!(ranges, [Some(100_000), None]);
}

#[tokio::test]
async fn a_part_that_was_everything_lands_without_a_request() {
    let (server, url) = serve(|r, _| Reply::file(r, &image(0), "\"a\""));
    let b = Bench::new(&image(0), &[url]);
    // What a process leaves that is killed between the last byte and the rename.
    let digest = b.manifest.pin().unwrap().digest;
    match b.store.begin_blob(&digest, &b.patience).await.unwrap() {
        Begin::Write(mut writer) => writer.write(&image(0)).unwrap(),
        Begin::Present(_) => panic!("nothing was fetched yet"),
    }
    assert_eq!(std::fs::read(b.fetch().await.unwrap()).unwrap(), image(0));
    assert_eq!(server.requests().len(), 0);
}

#[tokio::test]
async fn a_server_that_always_breaks_off_is_given_up() {
    let (server, url) = serve(|_, _| Reply::new(200, image(0)).cut_at(1000));
    let b = Bench::new(&image(0), &[url]);
    let e = b.fetch().await.unwrap_err();
    assert_eq!(e.kind(), Kind::Image);
    says(&e, "1000 bytes");
    b.nothing_landed();
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn redirects_are_followed_with_the_range_and_their_secrets_are_not_shown() {
    let (target, target_url) = serve(|r, before| match before {
        0 => Reply::file(r, &image(0), "\"a\"").cut_at(100_000),
        _ => Reply::file(r, &image(0), "\"a\""),
    });
    let (_server, url) = serve(move |r, _| match r.path.as_str() {
        "/d/tiny.img" => Reply::new(302, "<html>moved</html>").header("Location", "next"),
        "/d/next" => {
            Reply::new(307, "").header("Location", format!("{target_url}?signature=s3cret"))
        }
        other => Reply::new(404, other),
    });
    let mut b = Bench::new(&image(0), &[url]);
    assert_eq!(std::fs::read(b.fetch().await.unwrap()).unwrap(), image(0));
    let requests = target.requests();
    assert_eq!(requests[0].path, "/d/tiny.img?signature=s3cret");
    assert_eq!((requests.len(), requests[1].range()), (2, Some(100_000)));
    while let Ok(e) = b.events.try_recv() {
        assert!(!format!("{e:?}").contains("s3cret"), "{e:?}");
    }
}

#[tokio::test]
async fn a_redirect_without_an_end_is_given_up() {
    let (server, url) = serve(|_, _| Reply::new(302, "").header("Location", "/d/tiny.img"));
    let e = Bench::new(&image(0), &[url]).fetch().await.unwrap_err();
    says(&e, "more than 10 times");
    assert_eq!(server.requests().len(), 11);
}

#[tokio::test]
async fn a_page_in_place_of_the_image_is_called_a_page() {
    let (_server, url) = serve(|_, _| {
        Reply::new(200, "<html>\n<title>You are being redirected</title>\n</html>")
            .header("Content-Type", "text/html; charset=utf-8")
    });
    let mut b = Bench::new(&image(0), &[url]);
    // Its size is wrong as well; that it is a page says more.
    b.pin().size = Some(image(0).len() as u64);
    let e = b.fetch().await.unwrap_err();
    says(&e, "the server answered with a page");
    says(&e, "text/html");
    says(&e, "You are being redirected");
    b.nothing_is_left();
}

#[tokio::test]
async fn a_page_from_a_mirror_does_not_cost_what_the_first_address_gave() {
    let (first, url) = serve(|r, before| match before {
        0 => Reply::file(r, &image(0), "\"a\"").cut_at(100_000),
        1 => Reply::new(410, ""),
        _ => Reply::file(r, &image(0), "\"a\""),
    });
    let (_mirror, mirror) = serve(|_, _| Reply::new(200, "<html></html>"));
    let b = Bench::new(&image(0), &[url, mirror]);
    b.fetch().await.unwrap_err();
    b.fetch().await.unwrap();
    assert_eq!(first.requests()[2].range(), Some(100_000));
}

#[tokio::test]
async fn other_things_than_the_image_are_refused_at_their_first_bytes() {
    for (body, what) in [
        (b"\x1f\x8b\x08\x00compressed".to_vec(), "gzip"),
        (Vec::new(), "empty file"),
        (vec![0; 4096], "no image format"),
    ] {
        let (_server, url) = serve(move |_, _| Reply::new(200, body.clone()));
        let b = Bench::new(&image(0), &[url]);
        says(&b.fetch().await.unwrap_err(), what);
        b.nothing_is_left();
    }
}

#[tokio::test]
async fn a_wrong_digest_is_refused_with_both_digests_and_leaves_nothing() {
    let (server, url) = serve(|r, _| Reply::file(r, &image(1), "\"a\""));
    let b = Bench::new(&image(0), &[url]);
    let e = b.fetch().await.unwrap_err();
    says(&e, &Digest::of(Algorithm::Sha256, &image(0)).to_string());
    says(&e, &Digest::of(Algorithm::Sha256, &image(1)).to_string());
    says(&e, "images/tiny.toml");
    b.nothing_is_left();
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_dangerous_image_is_refused_although_its_digest_is_right() {
    let (_server, url) = serve(|_, _| Reply::new(200, fixture("data-file")));
    let b = Bench::new(&fixture("data-file"), &[url]);
    let e = b.fetch().await.unwrap_err();
    assert_eq!(e.kind(), Kind::Image);
    says(&e, "CVE-2024-32498");
    b.nothing_is_left();
}

#[tokio::test]
async fn a_stalled_server_is_given_up_and_the_mirror_takes_over() {
    let (_server, url) = serve(|r, _| Reply::file(r, &image(0), "\"a\"").stall_at(10_000));
    let (mirror, mirror_url) = serve(|r, _| Reply::file(r, &image(0), "\"b\""));
    let mut b = Bench::new(&image(0), &[url.clone(), mirror_url]);
    b.options.stall = Duration::from_secs(1);
    assert_eq!(std::fs::read(b.fetch().await.unwrap()).unwrap(), image(0));
    // The ETag of one server says nothing of another's file.
    assert_eq!(mirror.requests()[0].range(), None);

    let mut alone = Bench::new(&image(0), &[url]);
    alone.options.stall = Duration::from_secs(1);
    says(&alone.fetch().await.unwrap_err(), "no byte came for 1 s");
}

#[tokio::test]
async fn mirrors_are_tried_in_order_and_every_failure_is_told() {
    let (_a, missing) = serve(|_, _| Reply::new(404, "not here"));
    let (_b, other_size) = serve(|_, _| Reply::new(200, [image(0), vec![0]].concat()));
    let (good, good_url) = serve(|r, _| Reply::file(r, &image(0), "\"a\""));
    // A port on which nothing listens any more.
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/tiny.img", listener.local_addr().unwrap())
    };
    let wrong = [missing, other_size, nobody];
    let mut b = Bench::new(&image(0), &wrong);
    b.pin().size = Some(image(0).len() as u64);
    let e = b.fetch().await.unwrap_err();
    assert_eq!(e.evidence_lines().len(), 3, "{e:?}");
    for (line, (url, what)) in e.evidence_lines().iter().zip(wrong.iter().zip([
        "404 Not Found",
        "the manifest says 301792",
        "refused",
    ])) {
        assert!(line.starts_with(url.as_str()) && line.contains(what), "{line}");
    }
    b.nothing_is_left();
    b.pin().mirrors.push(good_url);
    assert_eq!(std::fs::read(b.fetch().await.unwrap()).unwrap(), image(0));
    assert_eq!(good.requests().len(), 1);
}

#[tokio::test]
async fn a_server_without_end_is_cut_off_at_the_bound() {
    let (_server, url) = serve(|_, _| Reply::new(200, image(0)).forever());
    let mut b = Bench::new(&image(0), std::slice::from_ref(&url));
    b.options.max_bytes = 1 << 20;
    says(&b.fetch().await.unwrap_err(), "more than the 1048576 bytes");
    b.nothing_is_left();
    b.pin().size = Some(400_000);
    says(&b.fetch().await.unwrap_err(), "more than the 400000 bytes");
    b.nothing_is_left();
}

#[tokio::test]
async fn a_file_above_the_limit_is_refused_by_its_announced_size() {
    let (_server, url) = serve(|r, _| Reply::file(r, &image(0), "\"a\""));
    let mut b = Bench::new(&image(0), &[url]);
    b.options.max_bytes = 1000;
    says(&b.fetch().await.unwrap_err(), "the limit is 1000");
    b.nothing_is_left();
}

#[tokio::test]
async fn a_full_disk_is_told_before_the_download() {
    let (_server, url) = serve(|r, _| Reply::file(r, &image(0), "\"a\""));
    let mut b = Bench::new(&image(0), &[url]);
    b.options.leave_free = u64::MAX;
    let e = b.fetch().await.unwrap_err();
    assert_eq!(e.kind(), Kind::Host);
    says(&e, "no room for tiny");
    b.nothing_is_left();
}

#[tokio::test]
async fn an_encoding_that_was_not_asked_for_is_refused() {
    let (_server, url) = serve(|_, _| Reply::new(200, image(0)).header("Content-Encoding", "br"));
    says(&Bench::new(&image(0), &[url]).fetch().await.unwrap_err(), "encoding `br`");
}

#[tokio::test]
async fn a_dropped_fetch_ends_at_once_and_keeps_what_came() {
    let (server, url) = serve(|r, before| match before {
        0 => Reply::file(r, &image(0), "\"a\"").stall_at(100_000),
        _ => Reply::file(r, &image(0), "\"a\""),
    });
    let mut b = Bench::new(&image(0), &[url]);
    // Only the drop can end the first download.
    b.options.stall = Duration::from_secs(3600);
    {
        let fetching = b.fetch();
        tokio::pin!(fetching);
        let part = b
            .store
            .root()
            .join("partial")
            .join(format!("sha256_{}", b.manifest.pin().unwrap().digest.hex()));
        let death = crate::wait::Death::never();
        let came = Patience::new(Speed::new(1.0), Events::silent());
        let came = came.until(
            "the first bytes",
            Duration::from_secs(60),
            Duration::from_millis(5),
            &death,
            || async {
                match std::fs::metadata(&part) {
                    Ok(meta) if meta.len() == 100_000 => crate::wait::Poll::Ready(()),
                    _ => crate::wait::Poll::NotYet("nothing".into()),
                }
            },
        );
        tokio::select! {
            out = &mut fetching => panic!("it cannot have ended: {out:?}"),
            came = came => came.unwrap(),
        }
    }
    // The lock is free once the thread has ended, which this waits for.
    assert_eq!(std::fs::read(b.fetch().await.unwrap()).unwrap(), image(0));
    assert_eq!(server.requests()[1].range(), Some(100_000));
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_is_an_error_of_its_address() {
    let (server, url) = serve(|r, _| Reply::file(r, &image(0), "\"a\""));
    let b = Bench::new(&image(0), &[url.replace("http://", "https://")]);
    let e = b.fetch().await.unwrap_err();
    assert_eq!(e.kind(), Kind::Image, "{e}");
    assert!(server.requests().iter().all(|r| !r.path.starts_with("/d/")));
    b.nothing_is_left();
}

#[tokio::test]
async fn a_recipe_is_not_fetched() {
    let mut b = Bench::new(&image(0), &["http://images.example.org/x".into()]);
    b.manifest.kind = super::super::manifest::Kind::Recipe(toml::Table::new());
    let e = b.fetch().await.unwrap_err();
    assert_eq!(e.kind(), Kind::Input);
    says(&e, "images build tiny");
}

#[tokio::test]
async fn a_passing_trouble_is_asked_again() {
    let busy = |status| Reply::new(status, "").header("Retry-After", "0");
    let troubles = [("503", busy(503)), ("429", busy(429)), ("hang up", Reply::hang_up())];
    for (name, trouble) in troubles {
        let (server, url) = serve(move |r, before| match before {
            0 | 1 => trouble.clone(),
            _ => Reply::file(r, &image(0), "\"a\""),
        });
        let b = Bench::new(&image(0), &[url]);
        b.fetch().await.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(server.requests().len(), 3, "{name}");
    }
}

#[tokio::test]
async fn a_busy_server_is_given_up_in_the_end() {
    let (server, url) = serve(|_, _| Reply::new(503, ""));
    let e = Bench::new(&image(0), &[url]).fetch().await.unwrap_err();
    says(&e, "503");
    assert_eq!(server.requests().len(), 1 + RETRIES as usize);
}

#[tokio::test]
async fn a_removed_build_leads_to_the_update() {
    let (_server, url) = serve(|_, _| Reply::new(404, ""));
    let mut bench = Bench::new(&image(0), std::slice::from_ref(&url));
    let (index, url) = (url.clone(), url.replace("tiny", "tiny-{build}"));
    bench.pin().newest = Some(Box::new(NewestRule { index, url, sums_url: None }));
    let e = bench.fetch().await.unwrap_err();
    assert!(e.hint_text().unwrap().contains("stackproof images update tiny"), "{e:?}");
}

#[tokio::test]
async fn a_file_that_is_not_there_is_asked_for_once() {
    for (status, advice) in [(404, "has moved"), (410, "has moved"), (403, "refuses this file")] {
        let page = "<html>요청하신 파일을 찾을 수 없습니다</html>";
        let (server, url) = serve(move |_, _| Reply::new(status, page));
        let e = Bench::new(&image(0), &[url]).fetch().await.unwrap_err();
        assert!(e.hint_text().unwrap().contains(advice), "{e:?}");
        assert!(e.hint_text().unwrap().contains("images/tiny.toml"), "{e:?}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_page_is_shown_in_its_own_language() {
    let (_server, url) = serve(|_, _| Reply::new(200, "사내 프록시: 로그인이 필요합니다\x1b[2J\n"));
    let e = Bench::new(&image(0), &[url]).fetch().await.unwrap_err();
    says(&e, "사내 프록시");
    assert!(!e.evidence_lines().concat().contains('\x1b'), "{e:?}");
}

#[tokio::test]
async fn a_location_with_raw_utf8_or_a_blank_is_followed() {
    for (location, path) in [("/이미.img", "/%EC%9D%B4%EB%AF%B8.img"), ("/my image", "/my%20image")]
    {
        let (server, url) = serve(move |r, before| match before {
            0 => Reply::new(302, "").header("location", location),
            _ => Reply::file(r, &image(0), "\"a\""),
        });
        Bench::new(&image(0), &[url]).fetch().await.unwrap();
        assert_eq!(server.requests()[1].path, path);
    }
}

fn through(variables: &[(&str, &str)]) -> ProxySettings {
    let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
    crate::outbound::OutboundVariables::read(find).proxies().unwrap()
}

/// Squid's default rules: plain requests pass, a tunnel to another port than 443 does not.
fn squid(r: &Request) -> Reply {
    match r.path.starts_with("http://") {
        true => Reply::file(r, &image(0), "\"a\""),
        false => Reply::new(403, ""),
    }
}

#[tokio::test]
async fn plain_http_goes_to_its_proxy_as_it_is() {
    let (proxy, at) = serve(|r, _| squid(r));
    let mut b = Bench::new(&image(0), &["http://images.invalid:8801/d/tiny.img".into()]);
    let at = at.replace("http://", "http://me:s%20cret@");
    b.options.proxies = through(&[("http_proxy", &at)]);
    b.fetch().await.unwrap();
    let requests = proxy.requests();
    assert_eq!(requests[0].path, "http://images.invalid:8801/d/tiny.img");
    assert_eq!(requests[0].header("host"), Some("images.invalid:8801"));
    assert_eq!(requests[0].header("proxy-authorization"), Some("Basic bWU6cyBjcmV0"));
}

#[tokio::test]
async fn a_socks_proxy_is_used() {
    let (server, url) = serve(|r, _| Reply::file(r, &image(0), "\"a\""));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = format!("socks5h://{}", listener.local_addr().unwrap());
    let target = url.trim_start_matches("http://").split('/').next().unwrap().to_owned();
    let socks = std::thread::spawn(move || socks_once(&listener, &target));
    let mut b = Bench::new(&image(0), &[url]);
    b.options.proxies = through(&[("all_proxy", &at)]);
    b.fetch().await.unwrap();
    assert_eq!(server.requests().len(), 1);
    socks.join().unwrap();
}

/// One SOCKS5 connection (RFC 1928), led to `target` whatever it asks for.
fn socks_once(listener: &std::net::TcpListener, target: &str) {
    use std::io::Write;
    let (mut client, _) = listener.accept().unwrap();
    let mut greeting = [0; 3];
    client.read_exact(&mut greeting).unwrap();
    client.write_all(&[5, 0]).unwrap();
    let mut request = [0; 10];
    client.read_exact(&mut request).unwrap();
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
    let mut far = std::net::TcpStream::connect(target).unwrap();
    let (mut from, mut to) = (client.try_clone().unwrap(), far.try_clone().unwrap());
    std::thread::spawn(move || io::copy(&mut from, &mut to));
    io::copy(&mut far, &mut client).unwrap();
}

#[tokio::test]
async fn no_proxy_leads_around_the_proxy() {
    let (_server, url) = serve(|r, _| Reply::file(r, &image(0), "\"a\""));
    for no_proxy in ["localhost, 127.0.0.1", "127.0.0.0/8", "*"] {
        let mut b = Bench::new(&image(0), std::slice::from_ref(&url));
        b.options.proxies =
            through(&[("http_proxy", "http://127.0.0.1:9"), ("no_proxy", no_proxy)]);
        b.fetch().await.unwrap();
    }
}

#[tokio::test]
async fn a_proxy_that_fails_is_named_without_its_password() {
    for (name, url) in
        [("http_proxy", "http://images.invalid/x"), ("https_proxy", "https://images.invalid/x")]
    {
        let mut b = Bench::new(&image(0), &[url.into()]);
        b.options.proxies = through(&[(name, "http://me:hunter22@127.0.0.1:9")]);
        let e = b.fetch().await.unwrap_err();
        says(&e, "through the proxy http://127.0.0.1:9");
        says(&e, "http_proxy");
        assert!(!format!("{e:?}").contains("hunter22"), "{e:?}");
    }
}

/// A certificate authority of its own, as a company's proxy has, and a server that it signed.
fn private_tls(dir: &Path) -> (PathBuf, Arc<rustls::ServerConfig>) {
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let server = server.signed_by(&key, &issuer).unwrap();
    let file = dir.join("ca.pem");
    std::fs::write(&file, ca_cert.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![server.der().clone()], key.into())
        .unwrap();
    (file, Arc::new(config))
}

#[tokio::test]
async fn a_private_authority_counts_once_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, tls) = private_tls(dir.path());
    let server = Server::start_tls(tls, |r, _| Reply::file(r, &image(0), "\"a\""));
    let url = server.url("/d/tiny.img").replace("http://127.0.0.1", "https://localhost");
    let e = Bench::new(&image(0), std::slice::from_ref(&url)).fetch().await.unwrap_err();
    says(&e, "SSL_CERT_FILE");
    says(&e, "ca-certificates");
    let mut b = Bench::new(&image(0), &[url]);
    b.options.roots.file = Some(ca);
    b.fetch().await.unwrap();
    assert_eq!(server.requests().len(), 1);
}
