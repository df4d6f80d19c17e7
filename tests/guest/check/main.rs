//! `check`: the program in the Linux test guest.
//!
//! It fills memory above the kernel's `mem=` limit with stamped pages, rewrites and checks them
//! forever, and prints one line per second on the console: its clocks, its timer, its pages, its
//! errors, and the longest gaps in which it did not run. It takes single-letter commands on the
//! console (see [`Check::command`]). Options come from the kernel command line (see [`options`]).
//!
//! It uses neither the standard library nor an allocator: where the guest's page faults are
//! emulated they cost about a millisecond each, so the program is only a few pages long, and the
//! memory that it works on is mapped at once through `/dev/mem`.

#![no_std]
#![no_main]

mod button;
mod cached;
mod disk;
mod gaps;
#[path = "../../../vmm-core/workload/libc_memory.rs"]
mod libc_memory;
mod line;
mod linux;
mod memory;
mod options;
#[path = "../../../vmm-core/workload/pace.rs"]
mod pace;
mod random;
#[path = "../../../vmm-core/src/workload/stamp.rs"]
#[expect(dead_code, reason = "the host uses the rest")]
mod stamp;
mod throughput;
mod vsock;
mod workers;

use button::Button;
use cached::Cached;
use disk::Disk;
use gaps::Gaps;
use line::Line;
use linux::{Clock, tsc};
use memory::Memory;
use options::Options;
use pace::Pace;
use vsock::Echo;
use workers::Workers;

const TIMER_PERIOD_MS: u64 = 100;
const NS_PER_MS: u64 = 1_000_000;
/// Pages per second: more than any processor rewrites.
const UNLIMITED: u64 = 4_000_000;

core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym main,
);

extern "C" fn main() -> ! {
    linux::open_console();
    let mut buffer = [0; 1024];
    let options = Options::parse(linux::read_file(c"/proc/cmdline", &mut buffer));
    let memory = match Memory::map(&options) {
        Ok(memory) => memory,
        Err(error) => linux::fail("check: cannot map /dev/mem, error ", error),
    };
    if options.litter > 0
        && let Err(error) = linux::litter(options.litter)
    {
        linux::fail("check: cannot litter memory, error ", error);
    }
    let cached = (options.cache > 0).then(|| {
        Cached::fill(options.cache, options.cache_order)
            .unwrap_or_else(|error| linux::fail("check: cannot map /dev/vda, error ", error))
    });
    let disk = options.disk.then(|| {
        Disk::open()
            .unwrap_or_else(|error| linux::fail("check: cannot open /dev/vda, error ", error))
    });
    Check::start(options, memory, cached, disk).run()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    linux::fail("check: panic in line ", info.location().map_or(0, |at| u64::from(at.line())))
}

/// What a thread writes.
#[derive(Clone, Copy)]
struct Load {
    /// Pages rewritten per second.
    rate: u64,
    /// Pages that are rewritten in turn.
    pages: u64,
}

impl Load {
    /// Writes the pages that are due after `elapsed` more ticks.
    fn write(self, memory: &mut Memory, pace: &mut Pace, elapsed: u64, halts: bool) {
        // A program that sleeps has to write ten milliseconds' worth of pages when it wakes up.
        let pages_max = if halts { self.rate / 50 + 1 } else { 1 };
        let mut credit = elapsed;
        for _ in 0..pages_max {
            if !pace.take(credit, self.rate) {
                break;
            }
            credit = 0;
            memory.rewrite(self.pages as usize);
        }
    }
}

struct Check {
    options: Options,
    memory: Memory,
    workers: Workers,
    cached: Option<Cached>,
    button: Option<Button>,
    disk: Option<Disk>,
    echo: Option<Echo>,
    entropy: u64,
    hz: u64,
    timer: linux::Timer,
    started_ns: u64,
    dirty_pace: Pace,
    sweep_pace: Pace,
    load: Load,
    silent: bool,
    ticks: u64,
    last: u64,
    gaps: Gaps,
    output: u64,
    gap_epoch: u64,
    expiries: u64,
    verified: u64,
}

impl Check {
    fn start(
        options: Options,
        mut memory: Memory,
        cached: Option<Cached>,
        disk: Option<Disk>,
    ) -> Self {
        let hz = measure_tsc();
        memory.fill();
        let workers = Workers::start(&options, &mut memory, hz);
        let mut bytes = [0; 64];
        let entropy =
            if options.disk { linux::read_file(c"/dev/hwrng", &mut bytes).len() } else { 0 };
        let started_ns = linux::now(Clock::Monotonic);
        let mut check = Self {
            load: Load { rate: 0, pages: 0 },
            silent: false,
            dirty_pace: Pace::new(hz),
            sweep_pace: Pace::new(hz),
            timer: linux::Timer::every(TIMER_PERIOD_MS * NS_PER_MS),
            button: if options.button { Button::listen() } else { None },
            echo: listen(options.vsock),
            options,
            memory,
            workers,
            cached,
            disk,
            entropy: entropy as u64,
            hz,
            started_ns,
            ticks: 0,
            last: tsc(),
            gaps: Gaps::default(),
            output: 0,
            gap_epoch: 0,
            expiries: 0,
            verified: 0,
        };
        check.set_load(options.rate, options.working_set_pages);
        check
    }

    /// Divides a load among all threads.
    fn set_load(&mut self, rate: u64, pages: u64) {
        let threads = self.options.threads;
        self.load = Load { rate: rate / threads, pages: pages / threads };
        self.workers.load(self.load);
    }

    fn run(&mut self) -> ! {
        let mut next_line = self.last;
        let mut next_command = self.last;
        loop {
            let now = tsc();
            self.turn(now);
            if now >= next_line {
                next_line = now + self.hz;
                if self.button.as_ref().is_some_and(Button::was_pressed) {
                    Line::new("check: off at the press of the power button").print();
                    linux::power_off();
                }
                if !self.silent {
                    self.print();
                }
            } else if now >= next_command {
                next_command = now + self.hz / 20;
                self.command();
                if let Some(echo) = &mut self.echo {
                    echo.turn();
                }
            }
            let is_reading = self.cached.as_mut().is_some_and(Cached::turn);
            if self.options.halt && !is_reading {
                linux::sleep(10 * NS_PER_MS);
            }
        }
    }

    fn turn(&mut self, now: u64) {
        self.ticks += 1;
        // A clock that went backwards shows as a gap of centuries, which no test misses.
        let elapsed = now.wrapping_sub(self.last);
        self.last = now;
        self.gaps.add(elapsed, self.hz);
        self.load.write(&mut self.memory, &mut self.dirty_pace, elapsed, self.options.halt);
        if self.sweep_pace.take(elapsed, self.options.sweep) {
            self.memory.sweep();
        }
    }

    /// Prints one line; the time that printing takes is reported separately from gaps.
    fn print(&mut self) {
        let monotonic = linux::now(Clock::Monotonic);
        self.expiries += self.timer.expiries();
        let expected = (monotonic - self.started_ns) / (TIMER_PERIOD_MS * NS_PER_MS);
        let fault = self.memory.first_fault();
        let others = self.workers.sums();
        let gaps = self.workers.worst_gaps(self.gaps);
        if let Some(disk) = &mut self.disk {
            disk.turn();
        }
        let mut line = Line::new("check");
        line.field("tick", self.ticks);
        line.field("mono_ms", monotonic / NS_PER_MS);
        line.field("real_ms", linux::now(Clock::Realtime) / NS_PER_MS);
        line.field("timers", self.expiries);
        line.field("expected", expected);
        line.field("written", self.memory.written() + others.written);
        line.field("checked", self.memory.checked() + others.checked);
        line.field("errors", self.memory.errors() + others.errors);
        line.field("bad_page", fault.map_or(0, |fault| fault.page));
        line.field("bad_kind", fault.map_or(0, |fault| fault.kind as u64));
        line.field("verified", self.verified);
        line.field("epoch", self.gap_epoch);
        line.field("gap_us", linux::microseconds(gaps.longest, self.hz));
        line.field("gap2_us", linux::microseconds(gaps.second, self.hz));
        line.field("stalled_us", linux::microseconds(gaps.total, self.hz));
        if let Some(cached) = &self.cached {
            line.field("read", cached.read());
            line.field("sum", cached.sum());
        }
        if let Some(disk) = &self.disk {
            line.field("disk_written", disk.written());
            line.field("disk_errors", disk.errors());
            line.field("entropy", self.entropy);
        }
        if let Some(echo) = &self.echo {
            line.field("echoed", echo.echoed());
            line.field("resets", echo.resets());
        }
        line.field("output_us", linux::microseconds(self.output, self.hz));
        line.print();
        let now = tsc();
        self.output = self.output.max(now.wrapping_sub(self.last));
        self.last = now;
    }

    /// Executes the letter that was typed, if any:
    ///
    /// | letter | does |
    /// |---|---|
    /// | `r` | forget the longest gap and print a line |
    /// | `v` | check all memory, sum up what is mapped of the disk, and print a line |
    /// | `i` | print a line |
    /// | `s` | print no line unless asked (it takes tens of milliseconds); again: do |
    /// | `0` to `9` | rewrite so many thousand pages per second |
    /// | `h` | rewrite 20,000 pages per second |
    /// | `f` | rewrite pages as fast as the program can (`check.hot`) |
    /// | `R`, `W`, `S`, `T` | measure the disk: see [`throughput`] |
    /// | `M`, `m` | read mapped pages for 10 s, with or without a full cache at first: [`cached`] |
    /// | `L` | read mapped pages of the disk at random (`check.cache`); again: do not |
    /// | `q` | reset the machine |
    fn command(&mut self) {
        match linux::typed() {
            Some(b'r') => {
                self.workers.forget_gaps();
                self.last = tsc();
                self.gaps = Gaps::default();
                self.output = 0;
                self.gap_epoch += 1;
                self.print();
            }
            Some(b'v') => {
                self.memory.check_all();
                self.workers.check_all();
                self.cached.iter_mut().for_each(Cached::check);
                self.verified += 1;
                self.last = tsc();
                self.print();
            }
            Some(b'i') => self.print(),
            Some(b's') => self.silent = !self.silent,
            Some(digit @ b'0'..=b'9') => {
                self.set_load(u64::from(digit - b'0') * 1000, self.options.working_set_pages);
            }
            Some(b'h') => self.set_load(20_000, self.options.working_set_pages),
            Some(b'f') => self.set_load(UNLIMITED, self.options.hot_pages),
            Some(letter @ (b'R' | b'W' | b'S' | b'T')) => throughput::measure(letter, self.hz),
            Some(letter @ (b'M' | b'm')) => cached::read(letter == b'M', self.hz),
            Some(b'L') => self.cached.iter_mut().for_each(Cached::toggle),
            Some(b'q') => linux::reset(),
            _ => {}
        }
    }
}

/// Listens at a vsock port; `None` if the port is 0.
fn listen(port: u32) -> Option<Echo> {
    let echo = (port != 0).then(|| Echo::listen(port))?;
    Some(echo.unwrap_or_else(|error| linux::fail("check: cannot listen by vsock, error ", error)))
}

/// TSC ticks per second, measured over half a second by the guest's clock.
fn measure_tsc() -> u64 {
    let (start_ns, start) = (linux::now(Clock::Monotonic), tsc());
    loop {
        let (now_ns, now) = (linux::now(Clock::Monotonic), tsc());
        if now_ns - start_ns >= 500 * NS_PER_MS {
            return (u128::from(now - start) * 1_000_000_000 / u128::from(now_ns - start_ns))
                as u64;
        }
    }
}
