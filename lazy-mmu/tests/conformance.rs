//! The programs of the conformance suite under all generations.

use std::cell::RefCell;

use lazytlb_lazy_mmu::conformance::{CASES, Call, Case, Outcome, Seen, run};
use lazytlb_lazy_mmu::generations::{Counter, CounterSave, Hooks, Stack, Unsupported, V3, V4};
use lazytlb_lazy_mmu::{Generation, LazyMmuState, Warning};

/// What comes of a program, and all that was seen.
fn watched<G: Generation>(calls: impl Iterator<Item = Call>) -> (Outcome, Vec<Seen>) {
    let seen = RefCell::new(Vec::new());
    let outcome = run::<G>(calls, &|what| seen.borrow_mut().push(what));
    (outcome, seen.into_inner())
}

fn case(name: &str) -> &'static Case {
    CASES.iter().find(|case| case.name == name).unwrap()
}

#[test]
fn the_merged_generation_does_what_is_written_down() {
    for case in CASES {
        let (outcome, seen) = watched::<LazyMmuState>(case.each_call());
        assert_eq!((outcome.counts, outcome.is_active), (case.counts, case.is_active), "{}", case.name);
        let callbacks = seen.iter().filter_map(|what| match what {
            Seen::Callback(callback) => Some(*callback),
            _ => None,
        });
        assert!(callbacks.eq(case.each_callback()), "{}: {seen:?}", case.name);
        let warnings: Vec<Warning> = seen
            .iter()
            .filter_map(|what| match what {
                Seen::Warning(warning) => Some(*warning),
                Seen::Bug(_) => panic!("{}: the merged generation stops no machine", case.name),
                Seen::Callback(_) => None,
            })
            .collect();
        assert_eq!(warnings, case.warnings, "{}", case.name);
    }
}

/// All that Linux's own test looks at.
#[test]
fn the_kunit_case_step_by_step() {
    let calls: Vec<Call> = case("KUnit").each_call().collect();
    let active = |steps: usize| watched::<LazyMmuState>(calls[..steps].iter().copied()).0.is_active;
    let expected = [false, true, true, true, false, false, false, false, false, true, false];
    assert_eq!(core::array::from_fn(active), expected);
}

/// T20: nothing is kept, called or warned of, whatever the program.
#[test]
fn without_the_mode_nothing_happens() {
    assert_eq!(size_of::<Unsupported>(), 0);
    for case in CASES {
        let (outcome, seen) = watched::<Unsupported>(case.each_call());
        assert_eq!((outcome.counts, outcome.is_active, seen), ((0, 0), false, vec![]), "{}", case.name);
    }
}

/// One line for each case: what a generation makes of it.
fn table<G: Generation>() -> String {
    let line = |case: &Case| {
        let outcome = run::<G>(case.each_call(), &|_| ());
        let Outcome { counts: (enabled, paused), warnings, bugs, unbatched, .. } = outcome;
        let mut line = format!("{:5} {enabled}/{paused}", case.name);
        for (n, what) in [(warnings, "warnings"), (bugs, "bugs"), (unbatched, "unbatched")] {
            if n > 0 {
                line += &format!(", {n} {what}");
            }
        }
        for fault in outcome.faults() {
            line += &format!(", {fault}");
        }
        line
    };
    CASES.iter().map(line).collect::<Vec<_>>().join("\n")
}

macro_rules! tables {
    ($($name:ident: $generation:ty),*) => {
        $(
            #[test]
            fn $name() {
                insta::assert_snapshot!(table::<$generation>());
            }
        )*
    };
}

tables! {
    hooks: Hooks,
    hooks_strict: Hooks<lazytlb_lazy_mmu::state::NativeCounter, true>,
    stack: Stack,
    counter: Counter,
    counter_save: CounterSave,
    v3: V3,
    v4: V4,
    merged: LazyMmuState
}
