//! Against a server of our own that says what a test wants, when it wants.

use super::*;
use crate::event::Events;
use crate::wait::{Life, Speed};
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}"#;

struct Server {
    lines: Lines<ReadHalf<DuplexStream>>,
    out: WriteHalf<DuplexStream>,
}

impl Server {
    fn new() -> (Server, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (read, out) = tokio::io::split(theirs);
        (Server { lines: Lines(BufReader::new(read)), out }, ours)
    }
    async fn says(&mut self, text: &str) {
        self.out.write_all(format!("{text}\r\n").as_bytes()).await.unwrap();
    }
    /// The next command: its name and id.
    async fn hears(&mut self) -> (String, u64) {
        match self.lines.next().await {
            Next::Message(m) => {
                (m["execute"].as_str().unwrap().to_owned(), m["id"].as_u64().unwrap())
            }
            Next::End(why) => panic!("{why}"),
        }
    }
    async fn returns(&mut self, id: u64, value: Value) {
        self.says(&json!({"return": value, "id": id}).to_string()).await;
    }
    async fn greets(&mut self) {
        self.says(GREETING).await;
        let (name, id) = self.hears().await;
        assert_eq!(name, "qmp_capabilities");
        self.returns(id, json!({})).await;
    }
}

fn patience() -> Patience {
    Patience::new(Speed::new(1.0), Events::silent())
}

async fn session() -> (Server, Qmp, Life) {
    let (mut server, stream) = Server::new();
    let (life, death) = Life::new();
    let patience = patience();
    let (qmp, ()) = tokio::join!(Qmp::negotiate(stream, &patience, &death), server.greets());
    (server, qmp.unwrap(), life)
}

const STATUS: qapi_qmp::query_status = qapi_qmp::query_status {};

fn running() -> Value {
    json!({"running": true, "status": "running", "singlestep": false})
}

#[tokio::test]
async fn the_greeting_tells_the_version() {
    let (_server, qmp, _life) = session().await;
    assert_eq!(qmp.version(), (10, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn what_is_no_greeting_is_refused_and_quoted() {
    for bad in ["SSH-2.0-OpenSSH", r#"{"QMP": 3}"#, "[]"] {
        let (mut server, stream) = Server::new();
        server.says(bad).await;
        let error = Qmp::negotiate(stream, &patience(), &Death::never()).await.unwrap_err();
        assert!(error.message().contains(bad) || error.message().contains("QMP\":3"), "{error}");
    }
}

#[tokio::test]
async fn answers_find_their_callers_in_any_order_with_events_between() {
    let (mut server, qmp, _life) = session().await;
    let mut events = qmp.subscribe();
    let (raw, typed, ()) =
        tokio::join!(qmp.call_raw("query-x", json!({"a": 1}), ANSWER), qmp.call(&STATUS), async {
            let (first, id1) = server.hears().await;
            let (second, id2) = server.hears().await;
            assert_eq!((first.as_str(), second.as_str()), ("query-x", "query-status"));
            let stamp = json!({"seconds": 1, "microseconds": 2});
            server.says(&json!({"event": "STOP", "timestamp": stamp}).to_string()).await;
            server.returns(id2, running()).await;
            server
                .says(
                    &json!({"event": "NEW_KIND", "data": {"x": 1}, "timestamp": stamp}).to_string(),
                )
                .await;
            server.returns(id1, json!(7)).await;
        });
    assert_eq!(raw.unwrap(), 7);
    assert!(typed.unwrap().running);
    let stop = events.recv().await.unwrap();
    assert!(matches!(stop.typed(), Some(qapi_qmp::Event::STOP { .. })), "{stop:?}");
    let unknown = events.recv().await.unwrap();
    assert_eq!((unknown.name.as_str(), &unknown.data["x"]), ("NEW_KIND", &json!(1)));
    assert!(unknown.typed().is_none());
}

#[tokio::test]
async fn an_error_says_what_qemu_said() {
    let (mut server, qmp, _life) = session().await;
    let (answer, ()) = tokio::join!(qmp.call(&qapi_qmp::cont {}), async {
        let (_, id) = server.hears().await;
        let error = json!({"class": "GenericError", "desc": "not now"});
        server.says(&json!({"error": error, "id": id}).to_string()).await;
    });
    assert_eq!(answer.unwrap_err().message(), "QEMU refused `cont`: not now");
}

#[tokio::test]
async fn an_answer_of_the_wrong_shape_is_quoted() {
    let (mut server, qmp, _life) = session().await;
    let (answer, ()) = tokio::join!(qmp.call(&STATUS), async {
        let (_, id) = server.hears().await;
        server.returns(id, json!({"running": "maybe"})).await;
    });
    let error = answer.unwrap_err();
    assert!(error.message().contains(r#"{"running":"maybe"}"#), "{error}");
}

#[tokio::test]
async fn a_dropped_call_loses_neither_the_stream_nor_the_next_answer() {
    let (mut server, qmp, _life) = session().await;
    {
        let dropped = qmp.call(&STATUS);
        tokio::pin!(dropped);
        // Polled once: the command is on its way. Then dropped.
        let once = std::future::poll_fn(|cx| std::task::Poll::Ready(dropped.as_mut().poll(cx)));
        assert!(once.await.is_pending());
    }
    assert!(qmp.0.state().calls.is_empty(), "its slip is given back");
    let (_, late) = server.hears().await;
    let (answer, ()) = tokio::join!(qmp.call(&STATUS), async {
        let (_, id) = server.hears().await;
        server.returns(late, json!("nobody's")).await;
        server.returns(id, running()).await;
    });
    assert!(answer.unwrap().running);
}

#[tokio::test]
async fn the_end_of_the_stream_ends_all_callers_with_the_death_of_the_machine() {
    let (mut server, qmp, life) = session().await;
    let mut events = qmp.subscribe();
    let (a, b, ()) = tokio::join!(qmp.call(&STATUS), qmp.call(&qapi_qmp::stop {}), async {
        server.hears().await;
        server.hears().await;
        drop(server);
        // The end of the socket comes first, the exit status after it.
        while qmp.0.state().ended.is_none() {
            tokio::task::yield_now().await;
        }
        life.ends("QEMU was killed by signal 9");
    });
    for error in [a.unwrap_err(), b.unwrap_err()] {
        assert!(error.message().contains("QEMU was killed by signal 9"), "{error}");
    }
    assert!(events.recv().await.is_none());
    let later = qmp.call(&STATUS).await.unwrap_err();
    assert!(later.message().contains("QEMU was killed by signal 9"), "{later}");
}

#[tokio::test(start_paused = true)]
async fn a_monitor_that_closes_without_a_death_is_told_as_such() {
    let (server, qmp, _life) = session().await;
    drop(server);
    let error = qmp.call(&STATUS).await.unwrap_err();
    assert_eq!(error.message(), "the monitor ended: QEMU closed it");
}

#[tokio::test(start_paused = true)]
async fn garbage_ends_the_session_and_is_quoted() {
    let (mut server, qmp, _life) = session().await;
    let (answer, ()) = tokio::join!(qmp.call(&STATUS), async {
        server.hears().await;
        server.says("{\"return\": {}, ").await;
    });
    let error = answer.unwrap_err();
    assert!(error.message().starts_with("the monitor ended: this is not QMP"), "{error}");
    assert!(error.message().contains("{\"return\": {},"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_the_deadline() {
    let (mut server, qmp, _life) = session().await;
    let (answer, _) = tokio::join!(qmp.call(&STATUS), server.hears());
    let error = answer.unwrap_err();
    assert!(error.message().contains("10 s for QEMU's answer to `query-status`"), "{error}");
}

#[tokio::test]
async fn the_last_handle_dropped_closes_the_stream() {
    let (mut server, qmp, _life) = session().await;
    drop(qmp);
    assert!(matches!(server.lines.next().await, Next::End(_)));
}
