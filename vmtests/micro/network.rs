//! Frames between guests and us, through the switch.

use super::test;
use crate::bench::{Bench, COMMAND, MANAGEMENT, leg, run};
use crate::registry::Test;
use stackproof::error::{Context, Error, Kind, Result};
use stackproof::images::digest::{Algorithm, Digest};
use stackproof::lab::outside::Neighbour;
use stackproof::wait::{Death, Poll};
use std::net::SocketAddrV4;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub const TESTS: &[Test] = &[
    test("network::megabytes_arrive_whole_between_guests_and_with_us", 2, || run(megabytes())),
    test("network::a_cut_link_is_silent_and_a_healed_one_goes_on", 1, || run(cut_link())),
];

/// Bytes of each transfer.
const SIZE: usize = 4 << 20;

async fn megabytes() -> Result<()> {
    let bench = Bench::new().await?;
    let lab = bench.start(&["a", "b"]).await?;
    let [a, b] = lab.nodes() else { panic!("two guests") };
    let (to_a, to_b) = (bench.ssh(&lab, a)?, bench.ssh(&lab, b)?);
    // The server is in the background only once it listens.
    let serve = format!(
        "mkdir /srv && head -c {SIZE} /dev/urandom >/srv/data && httpd -p 80 -h /srv && \
         sha256sum </srv/data"
    );
    let sum = |text: String| text.split(' ').next().unwrap_or_default().to_owned();
    let of_a = sum(bench.ask(&to_a, a, &serve).await?);
    let of_b = sum(bench.ask(&to_b, b, &serve).await?);
    assert_ne!(of_a, of_b);

    let get = |from: &str| format!("wget -q -O - http://{from}/data | sha256sum");
    // At once, so that both directions of the switch are busy.
    let (fetch_a, fetch_b) = (get(&a.login.1.to_string()), get(&b.login.1.to_string()));
    let (at_b, at_a) = tokio::join!(bench.ask(&to_b, b, &fetch_a), bench.ask(&to_a, a, &fetch_b));
    assert_eq!((sum(at_b?), sum(at_a?)), (of_a.clone(), of_b), "from guest to guest");

    let at = SocketAddrV4::new(a.login.1, 80);
    let download = download(&lab, at);
    let got = bench.patience.within("the download", COMMAND, &a.vm.death(), download).await?;
    assert_eq!(got.len(), SIZE);
    assert_eq!(Digest::of(Algorithm::Sha256, &got).hex(), of_a, "from a guest to us");

    let ours: Vec<u8> =
        (0..SIZE as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let listener = leg(&lab).listen(8080).await?;
    let script = get(&format!("{}:8080", leg(&lab).address()));
    let death = a.vm.death();
    let (served, said) = tokio::join!(
        bench.patience.within("the upload", COMMAND, &death, upload(&listener, &ours)),
        bench.ask(&to_a, a, &script),
    );
    served?;
    assert_eq!(sum(said?), Digest::of(Algorithm::Sha256, &ours).hex(), "from us to a guest");
    drop(listener);
    lab.stop().await
}

async fn download(lab: &stackproof::lab::Lab, at: SocketAddrV4) -> Result<Vec<u8>> {
    let doing = || "downloading from a guest".to_owned();
    let mut stream = leg(lab).connect(at, COMMAND).await?;
    stream.write_all(b"GET /data HTTP/1.0\r\n\r\n").await.doing(Kind::Lab, doing)?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.doing(Kind::Lab, doing)?;
    let head = all.windows(4).position(|w| w == b"\r\n\r\n");
    let head = head.ok_or_else(|| Error::lab("the guest's answer is no HTTP"))?;
    Ok(all.split_off(head + 4))
}

async fn upload(listener: &stackproof::lab::outside::Listener, data: &[u8]) -> Result<()> {
    let doing = || "giving a guest its data".to_owned();
    let (mut stream, _) = listener.accept().await;
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        asked.push(stream.read_u8().await.doing(Kind::Lab, doing)?);
    }
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", data.len());
    stream.write_all(head.as_bytes()).await.doing(Kind::Lab, doing)?;
    stream.write_all(data).await.doing(Kind::Lab, doing)?;
    stream.shutdown().await.doing(Kind::Lab, doing)
}

/// How long nothing must be heard through a cut link.
const SILENCE: Duration = Duration::from_secs(2);

async fn cut_link() -> Result<()> {
    let bench = Bench::new().await?;
    let lab = bench.start(&["a"]).await?;
    let node = &lab.nodes()[0];
    let (leg, at) = (leg(&lab), node.login.1);
    let client = bench.ssh(&lab, node)?.client().await?;
    let mac = bench
        .patience
        .until("a ping", COMMAND, Duration::from_millis(50), &node.vm.death(), || async {
            match leg.ping(at, SILENCE).await {
                Ok(Some(echo)) => {
                    assert_eq!(echo.ttl, 64, "from a neighbour, through no router");
                    match leg.resolve(at, SILENCE).await {
                        Ok(Neighbour::Known(mac)) => Poll::Ready(mac),
                        other => Poll::NotYet(format!("{other:?}")),
                    }
                }
                other => Poll::NotYet(format!("{other:?}")),
            }
        })
        .await?;
    assert_eq!(mac, node.spec.nics[0].mac);

    node.vm.set_link(MANAGEMENT, false)?;
    assert_eq!(leg.ping(at, SILENCE).await?, None, "through a cut link");
    assert_eq!(leg.resolve(at, SILENCE).await?, Neighbour::Incomplete);
    assert_eq!(node.vm.death().cause(), None, "the machine does not notice");

    node.vm.set_link(MANAGEMENT, true)?;
    let ping = || async {
        match leg.ping(at, SILENCE).await {
            Ok(Some(echo)) => Poll::Ready(echo),
            other => Poll::NotYet(format!("{other:?}")),
        }
    };
    let (every, death) = (Duration::from_millis(50), Death::never());
    let echo = bench.patience.until("a ping again", COMMAND, every, &death, ping).await?;
    assert_eq!(echo.ttl, 64);
    // The connection from before the cut was not lost by it.
    let out = client.run("echo still here", "");
    let out = bench.patience.within("the old connection", COMMAND, &death, out).await?;
    assert_eq!(out.stdout, b"still here\n");
    lab.stop().await
}
