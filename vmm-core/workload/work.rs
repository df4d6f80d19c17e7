//! What a vCPU does all day: rewrite what is due, check the rest, watch the clock, report.
//!
//! Each turn of the loop handles at most two pages and reads a word of some more, a few
//! microseconds, so that a longer time between two turns is a time in which the vCPU did not run.

use crate::abi::{
    BELL_FILLED, BELL_STOPPED, BELL_VERIFIED, CONTROL_GPA, ControlPage, PAGE_BYTES, ParamsPage,
    REPORTS_GPA, share,
};
use crate::machine;
use crate::pace::Pace;
use crate::part::Part;
use crate::report::Reporter;
use crate::stamp::mix;

/// Reports are published, and the control page is read, so often per second.
const REPORTS_PER_SECOND: u64 = 1000;
/// Pages of which a word is read in a turn in which reads are due.
const READS_PER_TURN: u64 = 64;
const PHASE_FILLING: u64 = 1;
const PHASE_WORKING: u64 = 2;
const PHASE_STOPPED: u64 = 3;
const ORDER_RANDOM: u64 = 1;
const ORDER_HOT: u64 = 2;

/// Fills this vCPU's part of memory, then works until the host says stop.
pub fn run(vcpu: u64, params: &ParamsPage) -> ! {
    let report_gpa = REPORTS_GPA + vcpu * PAGE_BYTES;
    let mut worker = Worker {
        vcpu,
        vcpus: params.vcpus,
        part: Part::new(vcpu, params, report_gpa),
        reporter: Reporter::new(vcpu, report_gpa),
        control: ControlPage::default(),
        sweep_rate: part_of(params.sweep_rate, vcpu, params.vcpus),
        read_rate: part_of(params.read_rate, vcpu, params.vcpus),
        dirty_pace: Pace::new(params.tsc_hz),
        sweep_pace: Pace::new(params.tsc_hz),
        read_pace: Pace::new(params.tsc_hz),
        dirty_turn: 0,
        sweep_next: 0,
        verification: None,
        report_interval: params.tsc_hz / REPORTS_PER_SECOND,
        next_report: 0,
        last: 0,
    };
    worker.fill();
    while worker.control.stop == 0 {
        worker.turn();
    }
    worker.reporter.page.phase = PHASE_STOPPED;
    worker.reporter.announce(BELL_STOPPED);
    machine::spin()
}

struct Worker {
    vcpu: u64,
    vcpus: u64,
    part: Part,
    reporter: Reporter,
    control: ControlPage,
    sweep_rate: u64,
    read_rate: u64,
    dirty_pace: Pace,
    sweep_pace: Pace,
    read_pace: Pace,
    dirty_turn: u64,
    sweep_next: u64,
    verification: Option<Verification>,
    report_interval: u64,
    next_report: u64,
    last: u64,
}

/// A full check that is under way.
struct Verification {
    epoch: u64,
    next: u64,
    faults_before: u64,
}

impl Worker {
    fn fill(&mut self) {
        self.reporter.page.phase = PHASE_FILLING;
        self.reporter.publish();
        for index in 0..self.part.pages() {
            self.part.fill(index);
        }
        self.control = ControlPage::from_words(&machine::read_words(CONTROL_GPA));
        // A verification or a reset asked for before the work began is done with it.
        self.reporter.page.stall_epoch = self.control.stall_epoch;
        self.reporter.page.phase = PHASE_WORKING;
        self.reporter.announce(BELL_FILLED);
        self.last = machine::tsc();
    }

    fn turn(&mut self) {
        let now = machine::tsc();
        let elapsed = self.watch(now);
        if now >= self.next_report {
            self.next_report = now + self.report_interval;
            self.reporter.page.tsc = now;
            self.reporter.publish();
            self.obey();
        }
        let rate = part_of(self.control.dirty_rate, self.vcpu, self.vcpus);
        if self.dirty_pace.take(elapsed, rate) {
            self.dirty();
        }
        if self.read_pace.take(elapsed, self.read_rate.div_ceil(READS_PER_TURN)) {
            self.read();
        }
        if self.verification.is_some() {
            self.verify();
        } else if self.sweep_pace.take(elapsed, self.sweep_rate) {
            self.sweep();
        }
    }

    /// Notes a stall, and returns the time since the last turn.
    fn watch(&mut self, now: u64) -> u64 {
        let page = &mut self.reporter.page;
        page.tick += 1;
        let Some(elapsed) = now.checked_sub(self.last) else {
            page.tsc_backwards += 1;
            self.last = now;
            self.next_report = now;
            return 0;
        };
        self.last = now;
        page.longest_stall = page.longest_stall.max(elapsed);
        elapsed
    }

    /// Takes over what the host has written to the control page.
    fn obey(&mut self) {
        self.control = ControlPage::from_words(&machine::read_words(CONTROL_GPA));
        let page = &mut self.reporter.page;
        if page.stall_epoch != self.control.stall_epoch {
            page.stall_epoch = self.control.stall_epoch;
            page.longest_stall = 0;
        }
        let asked = self.control.verify_epoch;
        let known =
            self.verification.as_ref().map_or(page.verified_epoch, |under_way| under_way.epoch);
        if asked != known {
            self.verification =
                Some(Verification { epoch: asked, next: 0, faults_before: page.faults });
        }
    }

    fn dirty(&mut self) {
        let wanted = part_of(self.control.working_set_pages, self.vcpu, self.vcpus);
        let pages = wanted.min(self.part.pages());
        if pages == 0 {
            return;
        }
        self.dirty_turn += 1;
        let draw = mix(self.dirty_turn);
        let hot = (pages / 10).max(1);
        let index = match self.control.order {
            ORDER_RANDOM => draw % pages,
            ORDER_HOT if (draw >> 32) % 10 != 0 => draw % hot,
            ORDER_HOT => draw % pages,
            _ => self.dirty_turn % pages,
        };
        let outcome = self.part.rewrite(index);
        self.reporter.page.pages_written += 1;
        self.reporter.note(outcome);
    }

    fn read(&mut self) {
        let pages = self.part.pages().max(1);
        let done = self.reporter.page.pages_read;
        for number in done..done + READS_PER_TURN {
            self.part.read(mix(number) % pages);
        }
        self.reporter.page.pages_read = done + READS_PER_TURN;
    }

    fn sweep(&mut self) {
        if self.sweep_next >= self.part.pages() {
            self.sweep_next = 0;
            self.reporter.page.sweeps += 1;
            return;
        }
        let outcome = self.part.check(self.sweep_next);
        self.sweep_next += 1;
        self.reporter.note(outcome);
    }

    fn verify(&mut self) {
        let Some(under_way) = &mut self.verification else { return };
        if under_way.next < self.part.pages() {
            let outcome = self.part.check(under_way.next);
            under_way.next += 1;
            self.reporter.note(outcome);
            return;
        }
        let (epoch, faults_before) = (under_way.epoch, under_way.faults_before);
        self.verification = None;
        let page = &mut self.reporter.page;
        page.verified_epoch = epoch;
        page.verified_bad = page.faults - faults_before;
        self.reporter.announce(BELL_VERIFIED);
    }
}

fn part_of(total: u64, vcpu: u64, vcpus: u64) -> u64 {
    share(total, vcpu, vcpus).1
}
