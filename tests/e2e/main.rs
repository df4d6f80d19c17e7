//! End-to-end tests, from a user's view: real processes of the built program, real guests on KVM,
//! real QUIC on loopback.
//!
//! The tests build on [`support`]. Without a fault: [`moving`] guests, the other [`commands`],
//! hosts' [`certificates`], the [`confinement`] of a guest's process, the [`console`], guests that
//! write too fast ([`converging`]), [`dashboards`], [`definitions`] of guests, their [`density`] on
//! a host, [its metrics](density_metrics) and merge [`domains`], [`disks`] that are copied with the
//! guest, [`estimates`] of migrations, [`events`], the [`demo`], [`firmware`], a [`linux`] guest,
//! how [`memory`] is backed, [`power`] buttons and resets, [`saving`] to files, a [`terminal`] that
//! is left, [`watching`] guests, and all [`metrics`], with a list of those that other tests move
//! ([`moved_elsewhere`]). With faults: [`refusals`] before a migration begins, [`network`] cuts
//! between two network namespaces, and, built with the feature `failpoints`, the matrix of
//! [`faults`] in each phase. All of them are in one binary, so that they run in parallel.
//!
//! Tests with `linux` in their names boot a Linux guest, which takes minutes where KVM emulates the
//! guest's kernel: only `scripts/check --full` runs them.

#![cfg_attr(not(feature = "failpoints"), expect(dead_code, reason = "the fault matrix uses it"))]

#[cfg(feature = "failpoints")]
mod faults;

mod certificates;
mod commands;
mod confinement;
mod console;
mod converging;
mod dashboards;
mod definitions;
mod demo;
mod density;
mod density_metrics;
mod disks;
mod domains;
mod estimates;
mod events;
mod firmware;
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
mod terminal;
mod watching;
