//! Random programs that pair, under every generation, against a plain oracle: the program as a tree, and rules for its nodes.

use std::cell::RefCell;

use lazytlb_lazy_mmu::conformance::{Call, Callback, Fault, Seen, run};
use lazytlb_lazy_mmu::generations::{Counter, CounterSave, Hooks, Stack, V3, V4};
use lazytlb_lazy_mmu::state::NativeCounter;
use lazytlb_lazy_mmu::{Generation, LazyMmuState};
use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Section,
    Hinted,
    Pause,
    Interrupt,
}

/// A pair of calls, and what lies between them.
#[derive(Clone, Debug)]
struct Pair {
    kind: Kind,
    inside: Vec<Pair>,
}

fn programs() -> impl Strategy<Value = Vec<Pair>> {
    let kinds = || prop::sample::select(vec![Kind::Section, Kind::Section, Kind::Hinted, Kind::Pause, Kind::Interrupt]);
    let leaf = kinds().prop_map(|kind| Pair { kind, inside: Vec::new() });
    let pair = leaf.prop_recursive(6, 24, 3, move |inner| {
        (kinds(), prop::collection::vec(inner, 0..3)).prop_map(|(kind, inside)| Pair { kind, inside })
    });
    prop::collection::vec(pair, 0..4)
}

fn calls(program: &[Pair], calls: &mut Vec<Call>) {
    for pair in program {
        let (begin, end) = match pair.kind {
            Kind::Section => (Call::Enable, Call::Disable),
            Kind::Hinted => (Call::EnableWithPtes, Call::Disable),
            Kind::Pause => (Call::Pause, Call::Resume),
            Kind::Interrupt => (Call::IrqEnter, Call::IrqExit),
        };
        calls.push(begin);
        self::calls(&pair.inside, calls);
        calls.push(end);
    }
}

/// What a generation does to a program: its callbacks, how often it warns, and what it leaves behind.
#[derive(PartialEq, Debug)]
struct Done {
    callbacks: Vec<Callback>,
    warnings: usize,
    /// Whether a section stays on, an architecture is entered twice, or the like.
    is_right: bool,
}

fn done<G: Generation>(program: &[Pair]) -> Done {
    let mut list = Vec::new();
    calls(program, &mut list);
    let seen = RefCell::new(Vec::new());
    let outcome = run::<G>(list.into_iter(), &|what| seen.borrow_mut().push(what));
    let (callbacks, warnings): (Vec<Seen>, Vec<Seen>) =
        seen.into_inner().into_iter().partition(|what| matches!(what, Seen::Callback(_)));
    let callback = |what| match what {
        Seen::Callback(callback) => callback,
        _ => unreachable!(),
    };
    Done {
        callbacks: callbacks.into_iter().map(callback).collect(),
        warnings: warnings.len(),
        is_right: outcome.faults().next().is_none(),
    }
}

/// Where a pair of the program stands.
#[derive(Clone, Copy, Default)]
struct Around {
    sections: usize,
    paused: bool,
    interrupt: bool,
}

/// The merged generation: the mode is on where a section is open, nothing paused, and no interrupt runs. `fresh` is how a count
/// that pauses take away differs: in a pause it begins at none.
fn merged(program: &[Pair], around: Around, fresh: bool, out: &mut Vec<Callback>) {
    for pair in program {
        let off = around.paused || around.interrupt;
        let nested = around.sections > 0;
        let (begin, inside, end) = match pair.kind {
            Kind::Interrupt => (None, Around { interrupt: true, ..around }, None),
            _ if around.interrupt => (None, around, None),
            Kind::Section | Kind::Hinted if off => (None, around, None),
            Kind::Section | Kind::Hinted => {
                let hinted = matches!(pair.kind, Kind::Hinted) && !fresh;
                let enter = if hinted { Callback::EnterWithPtes } else { Callback::Enter };
                let end = if nested { Callback::Flush } else { Callback::Leave };
                ((!nested).then_some(enter), Around { sections: around.sections + 1, ..around }, Some(end))
            }
            Kind::Pause => {
                let was_on = nested && !off;
                let inside = if fresh { Around::default() } else { Around { paused: true, ..around } };
                (was_on.then_some(Callback::Leave), inside, was_on.then_some(Callback::Enter))
            }
        };
        out.extend(begin);
        merged(&pair.inside, inside, fresh, out);
        out.extend(end);
    }
}

/// What only knows whether it is on: sections nest if `nests`, and a pause leaves whether it is on or not.
fn flag(program: &[Pair], on: &mut bool, nests: bool, out: &mut Vec<Callback>) {
    for pair in program {
        match pair.kind {
            Kind::Interrupt => {}
            Kind::Section | Kind::Hinted => {
                let nested = nests && *on;
                if !nested {
                    out.push(Callback::Enter);
                }
                *on = true;
                flag(&pair.inside, on, nests, out);
                out.push(if nested { Callback::Flush } else { Callback::Leave });
                *on = nested && *on;
            }
            Kind::Pause => {
                out.push(Callback::Leave);
                *on = false;
                flag(&pair.inside, on, nests, out);
                if !(nests && *on) {
                    out.push(Callback::Enter);
                }
                *on = true;
            }
        }
    }
}

/// Whether some pair that counts stands where `is_wrong` says, of where it stands.
fn any(program: &[Pair], around: Around, is_wrong: &dyn Fn(Kind, Around) -> bool) -> bool {
    program.iter().any(|pair| {
        let inside = match pair.kind {
            Kind::Interrupt => return false,
            Kind::Section | Kind::Hinted => Around { sections: around.sections + 1, ..around },
            Kind::Pause => Around { paused: true, ..around },
        };
        is_wrong(pair.kind, around) || any(&pair.inside, inside, is_wrong)
    })
}

fn merged_without_hints(program: &[Pair]) -> Vec<Callback> {
    let mut callbacks = Vec::new();
    merged(program, Around::default(), false, &mut callbacks);
    callbacks.iter_mut().filter(|callback| **callback == Callback::EnterWithPtes).for_each(|c| *c = Callback::Enter);
    callbacks
}

proptest! {
    #[test]
    fn the_merged_one_takes_every_program_that_pairs(program in programs()) {
        let mut callbacks = Vec::new();
        merged(&program, Around::default(), false, &mut callbacks);
        prop_assert_eq!(done::<LazyMmuState>(&program), Done { callbacks, warnings: 0, is_right: true });
    }

    #[test]
    fn a_count_that_pauses_take_away_does_too(program in programs()) {
        let mut callbacks = Vec::new();
        merged(&program, Around::default(), true, &mut callbacks);
        prop_assert_eq!(done::<CounterSave>(&program), Done { callbacks, warnings: 0, is_right: true });
    }

    #[test]
    fn the_hooks_know_no_depth(program in programs()) {
        let mut callbacks = Vec::new();
        flag(&program, &mut false, false, &mut callbacks);
        prop_assert_eq!(&done::<Hooks>(&program).callbacks, &callbacks);
        prop_assert_eq!(done::<Hooks<NativeCounter, true>>(&program).callbacks, callbacks);
    }

    #[test]
    fn the_stack_knows_depth_but_no_pauses(program in programs()) {
        let mut callbacks = Vec::new();
        flag(&program, &mut false, true, &mut callbacks);
        let done = done::<Stack>(&program);
        prop_assert_eq!((done.callbacks, done.warnings), (callbacks, 0));
    }

    /// What a count with a flag allows is done as the merged one does it; what it does not allow is warned of.
    #[test]
    fn counts_with_a_flag_refuse_what_they_cannot_do(program in programs()) {
        let in_a_pause = any(&program, Around::default(), &|_, around| around.paused);
        let pauses_nothing =
            any(&program, Around::default(), &|kind, around| matches!(kind, Kind::Pause) && around.sections == 0);
        let right = Done { callbacks: merged_without_hints(&program), warnings: 0, is_right: true };
        for (done, refused) in [
            (done::<Counter>(&program), in_a_pause),
            (done::<V3>(&program), in_a_pause || pauses_nothing),
            (done::<V4>(&program), in_a_pause || pauses_nothing),
        ] {
            if refused {
                prop_assert!(done.warnings > 0);
            } else {
                prop_assert_eq!(&done, &right);
            }
        }
    }

    /// Programs that do not pair: nobody panics, and what the merged one leaves on has warned, or been paired across an interrupt or
    /// a pause.
    #[test]
    fn calls_in_any_order_are_survived(calls in prop::collection::vec(prop::sample::select(vec![Call::Enable, Call::Disable, Call::Pause, Call::Resume]), 0..40)) {
        run::<Hooks>(calls.iter().copied(), &|_| ());
        run::<Stack>(calls.iter().copied(), &|_| ());
        run::<Counter>(calls.iter().copied(), &|_| ());
        run::<CounterSave>(calls.iter().copied(), &|_| ());
        run::<V3>(calls.iter().copied(), &|_| ());
        run::<V4>(calls.iter().copied(), &|_| ());
        let outcome = run::<LazyMmuState>(calls.iter().copied(), &|_| ());
        let unentered = outcome.faults().any(|fault| matches!(fault, Fault::NotEntered));
        prop_assert!(!unentered || outcome.warnings > 0, "an architecture that was not entered is flushed only after a warning");
    }
}
