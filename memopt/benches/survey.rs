//! Measures how fast one thread scans pages: zeros, unique contents, duplicates, and a mix.
//!
//! `cargo bench -p memopt --bench survey -- [MIB] [RUNS]` (1024 MiB and 5 runs by default).

use std::num::NonZeroUsize;
use std::time::Instant;

use memopt::survey::{Page, Scan, Scanned, Seed};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().filter(|it| it != "--bench").collect();
    let number = |at: usize, default| arguments.get(at).map_or(Ok(default), |it| it.parse());
    let (mib, runs) = (number(1, 1024)?, number(2, 5)?);
    let pages = (mib << 8).max(1);
    println!("{mib} MiB, {runs} runs, one thread; GiB/s, median and worst");
    for (name, content) in [
        ("zeros", (|_| 0) as fn(usize) -> u64),
        ("all unique", |page| page as u64 + 1),
        ("all duplicates", |page| page as u64 % 16 + 1),
        ("a quarter zeros, a quarter duplicates", |page| match page % 4 {
            0 => 0,
            1 => page as u64 % 64 + 1,
            _ => page as u64 + 1,
        }),
    ] {
        let memory: Vec<Page> = (0..pages).map(|page| filled(content(page))).collect();
        let mut rates = Vec::new();
        for run in 0..runs {
            let began = Instant::now();
            std::hint::black_box(scan_pages(&memory, run as u64)?);
            rates.push(mib as f64 / 1024.0 / began.elapsed().as_secs_f64());
        }
        rates.sort_by(f64::total_cmp);
        let (median, worst) = (rates.get(rates.len() / 2), rates.first());
        println!("{name:40} {:6.2} {:6.2}", median.unwrap_or(&0.0), worst.unwrap_or(&0.0));
    }
    Ok(())
}

fn scan_pages(memory: &[Page], seed: u64) -> Outcome<Scanned> {
    let capacity = NonZeroUsize::new(131_072).ok_or("no capacity")?;
    let mut scan = Scan::new(Seed::new(seed), capacity, 3);
    scan.feed(memory.iter().enumerate().map(|(index, page)| (index as u64, page)));
    Ok(scan.finish())
}

/// Returns a page with its own content; zeros for 0.
fn filled(content: u64) -> Page {
    let mut page = [0; 4096];
    let mut word = content;
    for bytes in page.as_chunks_mut::<8>().0 {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d);
        *bytes = word.to_le_bytes();
    }
    page
}
