//! The `lazytlb` command.

mod bad_input;
mod bugs;
mod catalogue;
mod compare;
mod costs;
mod kinds;
mod lazy_mmu;
mod litmus;
mod progress;
mod replay;
mod soak;
mod suite;
mod torture;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde::Serialize;

use bad_input::BadInput;

/// Compares and explores lifetime strategies for a lazily held address space (active_mm).
///
/// When a CPU goes from a user task to a kernel thread it keeps the user page tables loaded. Something must keep that
/// address space alive, or take it off the CPU, before it is freed. This command runs the library's strategies in a
/// scheduler model, over all interleavings, and tells which are safe where, with a kernel-style report and a schedule
/// to replay for each that is not; and it runs them over recorded traces of real kernels, and tells what each costs.
///
/// Start with `lazytlb compare`. Then look at a bug: `lazytlb bugs B01`. Then record a trace of your own machine
/// (`perf record -a -e 'sched:*' -e 'tlb:*' sleep 5; perf script > my.txt`) and replay it: `lazytlb replay my.txt`.
///
/// Exit status: 0 if all is as expected, 1 if something is not, 2 if the input is bad.
#[derive(Parser)]
#[command(name = "lazytlb", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Puts all strategies side by side, on the bundled tests and traces and natively.
    Compare(compare::Arguments),
    /// Counts what each path of the switch path costs under each strategy.
    Costs(costs::Arguments),
    /// Runs litmus tests over all interleavings.
    Litmus(litmus::Arguments),
    /// The catalogue of known bugs: lists them, explains one, plants and finds all of them.
    Bugs(bugs::Arguments),
    /// Replays a recorded scheduler trace and counts what each strategy would cost.
    Replay(replay::Arguments),
    /// Runs a script of lazy MMU mode's calls, and shows the state behind each.
    LazyMmu(lazy_mmu::Arguments),
    /// Runs random programs under every strategy that claims to stand them.
    Soak(soak::Arguments),
    /// Runs the strategies on real threads, which are interrupted by signals.
    Torture(torture::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Costs(arguments) => costs::run(&arguments),
        Command::Litmus(arguments) => litmus::run(&arguments),
        Command::Bugs(arguments) => bugs::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::LazyMmu(arguments) => lazy_mmu::run(&arguments),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Torture(arguments) => torture::run(&arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        // Whoever read our output has seen enough.
        Err(error) if error.chain().any(is_broken_pipe) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            let bad_input = error.chain().any(|cause| cause.is::<BadInput>());
            ExitCode::from(if bad_input { 2 } else { 1 })
        }
    }
}

fn is_broken_pipe(error: &(dyn core::error::Error + 'static)) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    let in_json = error.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
    kind.or(in_json) == Some(io::ErrorKind::BrokenPipe)
}

/// Prints what was found.
fn print(text: &str) -> Result<()> {
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// Prints what was found, for programs.
fn print_json(value: &impl Serialize) -> Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, value)?;
    stdout.write_all(b"\n")?;
    Ok(())
}
