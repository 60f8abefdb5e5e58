//! The `lazytlb` command.

mod bad_input;
mod litmus;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use bad_input::BadInput;

/// Explores lifetime strategies for a lazily held address space (active_mm).
///
/// When a CPU goes from a user task to a kernel thread it keeps the user page tables loaded. Something must keep that
/// address space alive, or take it off the CPU, before it is freed. This command runs the library's strategies in a
/// scheduler model, over all interleavings, and tells which are safe where, with a kernel-style report and a schedule
/// to replay for each that is not.
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
    /// Runs litmus tests over all interleavings.
    Litmus(litmus::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Litmus(arguments) => litmus::run(&arguments),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("{error:#}");
            let bad_input = error.chain().any(|cause| cause.is::<BadInput>());
            ExitCode::from(if bad_input { 2 } else { 1 })
        }
    }
}
