//! How fast image hashing is: `cargo run --release --example hash -- FILE [sha256|sha512]`.
//!
//! Prints the digest, the seconds and MB/s of the best of five runs; compare with
//! `openssl dgst -sha256 FILE` on the same warm file.

use stackproof::images::digest::{self, Algorithm};
use std::path::PathBuf;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args_os().skip(1);
    let path = PathBuf::from(args.next().ok_or("usage: hash FILE [sha256|sha512]")?);
    let algorithm = match args.next() {
        None => Algorithm::Sha256,
        Some(name) => Algorithm::ALL
            .into_iter()
            .find(|a| name == *a.name())
            .ok_or("the algorithm is sha256 or sha512")?,
    };
    let bytes = path.metadata()?.len();
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        let digest = digest::file(&path, algorithm)?;
        best = best.min(start.elapsed().as_secs_f64());
        println!("{digest}");
    }
    println!("{best:.3} s, {:.0} MB/s", bytes as f64 / best / 1e6);
    Ok(())
}
