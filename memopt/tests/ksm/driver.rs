//! Drives a window on this host until its input ends; for the test that kills this program.
//!
//! `ksm-driver JOURNAL`: prints `driving` when the settings have been changed.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use memopt::ksm::{Budget, Control, Driver, Options, Window};
use memopt::observe::Sources;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let journal = std::env::args().nth(1).ok_or("no journal given")?;
    let sources = Sources::system();
    let (control, _) = Control::open(&sources, Path::new(&journal))?;
    let time = Duration::from_secs(600);
    let budget = Budget { cpu_share: 0.1, cpu_time: time, pages_per_second: 1000, time };
    let mut driver = Driver::new(&sources, control, Window::new(budget, Options::default()));
    driver.step(Duration::ZERO)?;
    println!("driving");
    let (sender, cancel) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        drop(sender);
    });
    driver.run(Duration::from_millis(500), &cancel)?;
    Ok(())
}
