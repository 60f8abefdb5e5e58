//! The seed case: B01, the dangling `active_mm` of November 2021.
//!
//! CPU 1 goes idle and borrows A. CPU 0 runs the last user of A, which exits. With borrows uncounted and nothing in the
//! place of the count, A is freed while CPU 1's `active_mm` still names it. What happens next depends on the machine:
//!
//! * Where the flush of freed page tables interrupts lazy CPUs and moves their MMU to `init_mm`, as x86 does, the
//!   hardware is safe. The pointer dangles, and nothing shows it until somebody looks. Andy Lutomirski put a one-byte
//!   KASAN check of `prev->active_mm` into `context_switch`, and it splat at once ("Re: [patch 080/262] lazy tlb: allow
//!   lazy tlb mm refcounting to be configurable", 5 November 2021).
//! * Where a flush interrupts nobody, CPU 1's MMU still walks the freed root.

use crate::program::{Program, Statement, TaskDecl};

/// The program. `checks_active_mm` puts the one-byte check into the switch path.
pub fn program(checks_active_mm: bool) -> Program {
    use Statement::{Exit, Switch};
    let user = |name: &str| TaskDecl { name: name.into(), mm: Some(0) };
    let mut program = Program {
        name: "seed".into(),
        mms: vec!["A".into()],
        tasks: vec![user("sh"), user("sh-thread"), TaskDecl { name: "kworker".into(), mm: None }],
        start: vec![Some(0), Some(1)],
        scripts: vec![],
        held: vec![],
        walkers: vec![],
        isolated: vec![],
        checks_active_mm,
        kernel: Default::default(),
        roam: None,
    };
    // CPU 1: its thread of A exits, the CPU borrows A for its idle task, and later goes on to a kernel thread.
    // CPU 0: the last thread of A exits.
    program.scripts =
        vec![vec![Exit, Switch(program.tasks.len())], vec![Exit, Switch(program.tasks.len() + 1), Switch(2)]];
    program.hold_what_is_put()
}
