//! Random programs: the reductions lose no outcome of any, under any memory model, and each model has those of the stronger.

use lazytlb_core::memory::{AtomicInt, AtomicWord, Label, LocalWord, Memory, Ordering, Ordering::*};
use lazytlb_machine::{
    Config, Kind, Limits, Machine, MemoryModel, ObjectKind, Reduction, Search, Sim, SimLocal, SimWord,
};
use lazytlb_programs::leak;
use proptest::prelude::*;

const CPUS: usize = 2;
const WORDS: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Load(usize, Ordering),
    Store(usize, usize, Ordering),
    Add(usize, Ordering),
    AddFull(usize),
    /// Exchanges 1 for 2.
    Cas(usize),
    Fence(Ordering),
    /// Waits until the word is not zero, for ever if need be.
    Wait(usize),
    /// A word of the CPU's own, which only the other CPU's checks look at.
    Local(usize),
    /// A check: the other CPU's own word must not be 2 while the shared word is 1.
    Check(usize),
    /// The other CPU gets an interrupt.
    Kick,
    IrqsOff(Vec<Op>),
}

fn of<const N: usize>(orders: [Ordering; N]) -> impl Strategy<Value = Ordering> {
    prop::sample::select(orders.to_vec())
}

fn op() -> impl Strategy<Value = Op> {
    let word = 0..WORDS;
    let plain = prop_oneof![
        3 => (word.clone(), of([Relaxed, Acquire])).prop_map(|(word, order)| Op::Load(word, order)),
        3 => (word.clone(), 1..3_usize, of([Relaxed, Release]))
            .prop_map(|(word, value, order)| Op::Store(word, value, order)),
        1 => (word.clone(), of([Relaxed, AcqRel])).prop_map(|(word, order)| Op::Add(word, order)),
        1 => word.clone().prop_map(Op::AddFull),
        1 => word.clone().prop_map(Op::Cas),
        1 => of([SeqCst, SeqCst, Acquire, Release]).prop_map(Op::Fence),
        1 => word.clone().prop_map(Op::Wait),
        1 => (1..3_usize).prop_map(Op::Local),
        1 => word.prop_map(Op::Check),
        1 => Just(Op::Kick),
    ];
    prop_oneof![4 => plain.clone(), 1 => prop::collection::vec(plain, 1..3).prop_map(Op::IrqsOff)]
}

/// What a CPU does, and what its interrupt handler does.
#[derive(Clone, Debug)]
struct Program {
    tasks: [Vec<Op>; CPUS],
    handler: Vec<Op>,
}

fn program() -> impl Strategy<Value = Program> {
    let task = || prop::collection::vec(op(), 1..5);
    let handler = prop::collection::vec(op(), 0..2);
    (task(), task(), handler).prop_map(|(one, other, handler)| Program { tasks: [one, other], handler })
}

struct Words {
    shared: [SimWord<usize>; WORDS],
    local: [SimLocal<usize>; CPUS],
    /// What each CPU's task, and its handler, has read, as digits.
    seen: [SimLocal<usize>; 2 * CPUS],
}

impl Words {
    fn run(&self, ops: &[Op], in_handler: bool) {
        for op in ops {
            let cpu = Machine::with(Machine::this_cpu);
            let saw = |value: usize| {
                let seen = &self.seen[2 * cpu + usize::from(in_handler)];
                seen.poke(seen.peek() * 10 + value + 1);
            };
            match op {
                Op::Load(word, order) => saw(self.shared[*word].load(*order)),
                Op::Store(word, value, order) => self.shared[*word].store(*value, *order),
                Op::Add(word, order) => saw(self.shared[*word].fetch_add(1, *order)),
                Op::AddFull(word) => saw(self.shared[*word].fetch_add_full(1, Label::NONE)),
                Op::Cas(word) => {
                    saw(self.shared[*word].compare_exchange(1, 2, Release, Acquire).unwrap_or_else(|old| old + 3));
                }
                Op::Fence(order) => Sim.fence(*order),
                Op::Wait(word) => saw(Sim.spin_until(|| match self.shared[*word].load(Relaxed) {
                    0 => None,
                    value => Some(value),
                })),
                Op::Local(value) => self.local[cpu].set(*value),
                Op::Check(word) => {
                    let one = self.shared[*word].fetch_add(0, AcqRel) == 1;
                    Machine::with(|machine| {
                        if machine.inspect(|| self.local[1 - cpu].get()) == 2 && one {
                            machine.fail(Kind::Assertion, "a check failed");
                        }
                    });
                }
                Op::Kick => Machine::with(|machine| machine.send_ipi(1 << (1 - cpu), 0)),
                Op::IrqsOff(ops) => {
                    let were_on = Machine::with(|machine| machine.irq_save(Label::NONE));
                    self.run(ops, in_handler);
                    Machine::with(|machine| machine.irq_restore(were_on));
                }
            }
        }
    }
}

fn machine(program: &Program, memory: MemoryModel) -> Machine {
    let machine = Machine::new(Config { cpus: CPUS, memory, bytes: 4 << 10, ..Config::default() });
    let words: &'static Words = leak(machine.place(
        "words",
        ObjectKind::Other,
        Words {
            shared: [(); WORDS].map(|()| AtomicWord::new(0)),
            local: [(); CPUS].map(|()| LocalWord::new(0)),
            seen: [(); 2 * CPUS].map(|()| LocalWord::new(0)),
        },
    ));
    for ops in program.tasks.clone() {
        let task = machine.add_task("task", move || words.run(&ops, false));
        machine.boot(task, true);
    }
    // A handler that kicks would do so for ever.
    let handler: Vec<Op> =
        program.handler.iter().filter(|op| !matches!(op, Op::Kick | Op::Wait(_) | Op::IrqsOff(_))).cloned().collect();
    machine.on_interrupt(move |_| words.run(&handler, true));
    machine.outcome(move |_, values| {
        values.extend(words.seen.iter().map(|seen| seen.peek() as u64));
        values.extend(words.shared.iter().map(|word| word.peek() as u64));
    });
    machine
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reductions_lose_no_outcome_of_random_programs(program in program()) {
        const ENOUGH: u64 = 60_000;
        for memory in MemoryModel::ALL {
            let limits = Limits { executions: ENOUGH, time: core::time::Duration::MAX, stop_at_first: false };
            let search = |reduction| machine(&program, memory).explore(Search::Exhaustive(reduction), limits);
            let plain = search(Reduction::None);
            if !plain.complete {
                continue;
            }
            for reduction in [Reduction::States, Reduction::Full] {
                let reduced = search(reduction);
                prop_assert!(reduced.complete);
                prop_assert_eq!(&reduced.outcomes, &plain.outcomes, "{} {:?}", memory, reduction);
            }
        }
    }

    /// What a model shows, the weaker one shows, too. Checks are left out: they look at a CPU's own word in memory, where
    /// it arrives before the CPU's buffered stores under TSO, and never before its earlier stores under `weak`.
    #[test]
    fn a_weaker_model_shows_more(program in program()) {
        fn checks(ops: &[Op]) -> bool {
            ops.iter().any(|op| match op {
                Op::Check(_) => true,
                Op::IrqsOff(ops) => checks(ops),
                _ => false,
            })
        }
        if program.tasks.iter().chain([&program.handler]).any(|ops| checks(ops)) {
            return Ok(());
        }
        let limits = Limits { executions: 1_000_000, time: core::time::Duration::MAX, stop_at_first: false };
        let outcomes = MemoryModel::ALL.map(|memory| {
            let result = machine(&program, memory).explore(Search::Exhaustive(Reduction::Full), limits);
            assert!(result.complete);
            result.outcomes
        });
        for (stronger, weaker) in outcomes.iter().zip(&outcomes[1..]) {
            let lost: Vec<_> = stronger.difference(weaker).collect();
            prop_assert!(lost.is_empty(), "{:?}", lost);
        }
    }
}

/// An interrupt that is sent because of a step can come right after that step, before interrupts are disabled: a search
/// that did not know yet of any interrupt must not have taken the two as one.
#[test]
fn an_interrupt_comes_before_interrupts_are_disabled() {
    for rounds in 1..4 {
        let off = || Op::IrqsOff(vec![Op::Load(1, Acquire)]);
        let tasks = [
            (0..rounds).flat_map(|_| [Op::Store(0, 1, Release), off()]).collect(),
            vec![Op::Load(0, Acquire), Op::Kick],
        ];
        let program = Program { tasks, handler: vec![Op::Store(1, 1, Release)] };
        let limits = Limits { executions: u64::MAX, time: core::time::Duration::MAX, stop_at_first: false };
        let search = |reduction| machine(&program, MemoryModel::Sc).explore(Search::Exhaustive(reduction), limits);
        let (plain, reduced) = (search(Reduction::None), search(Reduction::Full));
        assert_eq!(reduced.outcomes, plain.outcomes);
        // CPU 1 saw the store, and the first section saw the handler's.
        assert!(reduced.outcomes.iter().any(|(_, values)| values[2] == 2 && values[0].to_string().starts_with('2')));
    }
}

/// The return from an interrupt drains the store buffer. CPU 0's handler stores to words 2 and 0; its task then sees the
/// first of these and loads word 1. CPU 1 stores to word 1, fences, and loads word 0. If the handler's stores could stay in
/// the buffer, both loads could miss the other's store.
#[test]
fn the_return_from_an_interrupt_drains_the_store_buffer() {
    let handler = vec![Op::Store(2, 1, Release), Op::Store(0, 1, Release)];
    let tasks = [
        vec![Op::Load(2, Acquire), Op::Load(1, Acquire)],
        vec![Op::Kick, Op::Store(1, 1, Release), Op::Fence(SeqCst), Op::Load(0, Acquire)],
    ];
    let machine = machine(&Program { tasks, handler }, MemoryModel::Tso);
    let limits = Limits { executions: u64::MAX, time: core::time::Duration::MAX, stop_at_first: false };
    let result = machine.explore(Search::Exhaustive(Reduction::Full), limits);
    assert!(result.complete);
    // What CPU 0's task and CPU 1's have read, each digit one more.
    let read: Vec<(u64, u64)> = result.outcomes.iter().map(|(_, values)| (values[0], values[2])).collect();
    assert!(read.contains(&(11, 1)), "the handler may come late: {read:?}");
    assert!(read.contains(&(21, 2)) && read.contains(&(22, 1)), "or early: {read:?}");
    assert!(!read.contains(&(21, 1)), "{read:?}");
}

/// What a check looks at can have been written because of the step right before it.
#[test]
fn a_check_comes_after_what_the_step_before_it_has_caused() {
    let check = vec![Op::IrqsOff(vec![Op::Kick]), Op::Check(0)];
    let tasks = [vec![], [vec![Op::Store(0, 1, Relaxed)], check].concat()];
    let program = Program { tasks, handler: vec![Op::Local(2)] };
    for memory in MemoryModel::ALL {
        let search = |reduction| {
            machine(&program, memory)
                .explore(Search::Exhaustive(reduction), Limits { stop_at_first: false, ..Limits::default() })
        };
        assert_eq!(search(Reduction::Full).outcomes, search(Reduction::None).outcomes, "{memory}");
    }
}

/// To take an interrupt drains the store buffer. What is stored behind it must not be in the buffer before it: here the
/// second interrupt is sent while the first is being handled, so that the first is taken early and ends late.
#[test]
fn a_store_waits_for_an_interrupt() {
    let waits = vec![Op::Add(1, Relaxed), Op::Store(1, 1, Relaxed)];
    let sends = vec![Op::Kick, Op::Kick, Op::Add(1, Relaxed), Op::Store(2, 1, Relaxed)];
    let program = Program { tasks: [waits, sends], handler: vec![Op::Add(2, Relaxed)] };
    for memory in MemoryModel::ALL {
        let search = |reduction| machine(&program, memory).explore(Search::Exhaustive(reduction), Limits::default());
        assert_eq!(search(Reduction::Full).outcomes, search(Reduction::None).outcomes, "{memory}");
    }
}
