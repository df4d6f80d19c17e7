//! End to end, as a user has it: real processes of the built program, real guests on KVM, real QUIC
//! on loopback.
//!
//! [`support`] is what the tests stand on. Without a fault: [`moving`] guests, the [`commands`]
//! beside it, the [`confinement`] of its process, the [`console`], [`dashboards`], [`definitions`]
//! of guests, their [`density`] on a host, [its metrics](density_metrics) and merge [`domains`],
//! [`disks`] that are copied with the guest, [`events`], the [`demo`], a [`linux`] guest, how
//! [`memory`] is backed, [`power`] buttons and resets, [`saving`] to files, and the [`metrics`] of
//! it all, with what one test leaves out and another moves ([`moved_elsewhere`]). With one:
//! [`refusals`] before anything has begun, [`network`] cuts between two network namespaces, and,
//! built with the feature `failpoints`, the matrix of [`faults`] in each phase. One binary, so that
//! all of them share the machine's time.
//!
//! Tests with `linux` in their names boot a Linux, which takes minutes on a KVM that emulates the
//! guest's kernel: only `scripts/check --full` runs them.

#![cfg_attr(not(feature = "failpoints"), expect(dead_code, reason = "the fault matrix uses it"))]

#[cfg(feature = "failpoints")]
mod faults;

mod commands;
mod confinement;
mod console;
mod dashboards;
mod definitions;
mod demo;
mod density;
mod density_metrics;
mod disks;
mod domains;
mod events;
mod linux;
mod memory;
mod metrics;
mod moved_elsewhere;
mod moving;
mod network;
mod power;
mod refusals;
mod saving;
mod surveys;
