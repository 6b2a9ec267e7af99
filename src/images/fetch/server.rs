//! A small HTTP server for the tests, with the manners and the bad manners of real ones.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The first byte of `Range: bytes=N-`.
    pub fn range(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    length: bool,
    then: Then,
}

/// What happens after the body (or the part of it that is sent).
#[derive(Clone, Copy, Debug)]
enum Then {
    Close,
    /// Only so many bytes, then the connection ends.
    CutAt(usize),
    /// Only so many bytes, then nothing for as long as the client waits.
    StallAt(usize),
    /// The body again and again, for as long as the client takes it.
    Forever,
    /// Not even a head: the connection ends.
    HangUp,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply { status, headers: Vec::new(), body: body.into(), length: true, then: Then::Close }
    }
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
    pub fn without_length(mut self) -> Reply {
        self.length = false;
        self
    }
    pub fn cut_at(mut self, bytes: usize) -> Reply {
        self.then = Then::CutAt(bytes);
        self
    }
    pub fn stall_at(mut self, bytes: usize) -> Reply {
        self.then = Then::StallAt(bytes);
        self
    }
    /// No answer at all.
    pub fn hang_up() -> Reply {
        Reply { then: Then::HangUp, ..Reply::new(200, "") }
    }
    pub fn forever(mut self) -> Reply {
        (self.then, self.length) = (Then::Forever, false);
        self
    }

    /// What a good server answers for `file`: ranges, honoured under the right ETag only.
    pub fn file(request: &Request, file: &[u8], etag: &str) -> Reply {
        let fresh = request.header("if-range").is_none_or(|v| v == etag);
        match request.range().filter(|_| fresh) {
            Some(from) if from < file.len() => Reply::part(file, from).header("ETag", etag),
            Some(_) => Reply::new(416, ""),
            None => Reply::new(200, file).header("ETag", etag),
        }
    }

    /// 206 with everything from `from` on.
    pub fn part(file: &[u8], from: usize) -> Reply {
        Reply::new(206, &file[from..])
            .header("Content-Range", format!("bytes {from}-{}/{}", file.len() - 1, file.len()))
    }

    fn send<S: Read + Write>(&self, to: &mut S) -> std::io::Result<()> {
        if let Then::HangUp = self.then {
            return Ok(());
        }
        let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", self.status);
        if self.length {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        to.write_all(format!("{head}\r\n").as_bytes())?;
        match self.then {
            Then::HangUp | Then::Close => to.write_all(&self.body),
            Then::CutAt(n) => to.write_all(&self.body[..n]),
            Then::StallAt(n) => {
                to.write_all(&self.body[..n])?;
                // Ends when the client goes.
                let mut rest = Vec::new();
                to.read_to_end(&mut rest).map(drop)
            }
            Then::Forever => loop {
                to.write_all(&self.body)?;
            },
        }
    }
}

/// Serves on a loopback port until it is dropped.
pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    over: Arc<AtomicBool>,
}

impl Server {
    /// `answer` is given the request and how many came before it.
    pub fn start(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Server {
        Server::listen(answer, None)
    }

    /// The same over TLS; its name is `localhost`.
    pub fn start_tls(
        tls: Arc<rustls::ServerConfig>,
        answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Server {
        Server::listen(answer, Some(tls))
    }

    fn listen(
        answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            over: Arc::default(),
        };
        let (requests, over) = (server.requests.clone(), server.over.clone());
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let (requests, answer) = (requests.clone(), answer.clone());
                let tls = tls.clone();
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    match tls {
                        None => exchange(stream, &requests, &*answer),
                        Some(tls) => {
                            let session = rustls::ServerConnection::new(tls).unwrap();
                            let stream = rustls::StreamOwned::new(session, stream);
                            exchange(stream, &requests, &*answer);
                        }
                    }
                });
            }
        });
        server
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the listener, which then sees that it is over.
        let _ = TcpStream::connect(self.address);
    }
}

fn exchange<S: Read + Write>(
    mut stream: S,
    requests: &Mutex<Vec<Request>>,
    answer: &dyn Fn(&Request, usize) -> Reply,
) {
    let Some(request) = read_request(&mut stream) else { return };
    let before = {
        let mut all = requests.lock().unwrap();
        all.push(request.clone());
        all.len() - 1
    };
    // The client may hang up first: some tests are about just that.
    let _ = answer(&request, before).send(&mut stream);
    let _ = stream.flush();
}

fn read_request(stream: impl Read) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    for line in lines {
        let line = line.ok()?;
        match line.split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => break,
        }
    }
    Some(Request { path, headers })
}
