//! The classic litmus tests under `weak`: what each may end in, exactly.
//!
//! What is allowed is what RC11 allows (Lahav et al., PLDI 2017), and where a test has a name in the literature on C11 the
//! expected answer is the known one. 2+2W and S are left out of the model on purpose, and LB by RC11 itself.

use std::collections::BTreeSet;

use lazytlb_core::memory::{AtomicInt, AtomicWord, Label, Labelled, LocalWord, Memory, Ordering, Ordering::*};
use lazytlb_machine::{
    Config, Exploration, Kind, Limits, Machine, MemoryModel, ObjectKind, Reduction, Search, Sim, SimLocal, SimWord,
};
use lazytlb_programs::{kinds, leak};

const WORDS: usize = 3;
const CPUS: usize = 4;
const X: usize = 0;
const Y: usize = 1;
const Z: usize = 2;
const PLANTED: Label = Label::new("test.planted");

#[derive(Clone, Copy, Debug)]
enum Op {
    Load(usize, Ordering),
    Store(usize, usize, Ordering),
    /// Adds one, and notes what was there.
    Add(usize, Ordering),
    AddFull(usize),
    /// Exchanges 1 for 2, and notes what was there.
    Cas(usize, Ordering, Ordering),
    Fence(Ordering),
    FenceAt(Ordering, Label),
    StoreAt(usize, usize, Ordering, Label),
    Kick(usize),
    /// Polls until the word is not zero, and notes what it is.
    Wait(usize, Ordering),
    Stop,
}
use Op::*;

struct Words {
    shared: [SimWord<usize>; WORDS],
    /// What each CPU, and its handler, has read, as digits behind a one.
    seen: [SimLocal<usize>; 2 * CPUS],
}

impl Words {
    fn run(&self, ops: &[Op], handler: bool) {
        let cpu = Machine::with(Machine::this_cpu);
        let seen = &self.seen[2 * cpu + usize::from(handler)];
        let saw = |value: usize| seen.poke(seen.peek() * 10 + value);
        for &op in ops {
            match op {
                Load(word, order) => saw(self.shared[word].load(order)),
                Store(word, value, order) => self.shared[word].store(value, order),
                Add(word, order) => saw(self.shared[word].fetch_add(1, order)),
                AddFull(word) => saw(self.shared[word].fetch_add_full(1, PLANTED)),
                Cas(word, order, failure) => {
                    saw(self.shared[word].compare_exchange(1, 2, order, failure).unwrap_or_else(|old| old));
                }
                Fence(order) => Sim.fence(order),
                FenceAt(order, label) => Sim.fence(order.at(label)),
                StoreAt(word, value, order, label) => self.shared[word].store(value, order.at(label)),
                Kick(cpu) => Machine::with(|machine| machine.send_ipi(1 << cpu, 0)),
                Wait(word, order) => {
                    let ready = || Some(self.shared[word].load(order)).filter(|&value| value != 0);
                    saw(Sim.spin_until(ready));
                }
                Stop => Machine::with(|machine| machine.stop_machine(|_| {})),
            }
        }
    }
}

fn machine(cpus: &[&[Op]], handler: &[Op], memory: MemoryModel, relaxed: &[Label]) -> Machine {
    let relaxed = relaxed.iter().map(|label| label.name().to_owned()).collect();
    let machine = Machine::new(Config { cpus: cpus.len(), memory, bytes: 4 << 10, relaxed, ..Config::default() });
    let words: &'static Words = leak(machine.place(
        "words",
        ObjectKind::Other,
        Words { shared: [(); WORDS].map(|()| AtomicWord::new(0)), seen: [(); 2 * CPUS].map(|()| LocalWord::new(1)) },
    ));
    for ops in cpus {
        let ops: Vec<Op> = ops.to_vec();
        let task = machine.add_task("task", move || words.run(&ops, false));
        machine.boot(task, true);
    }
    let handler = handler.to_vec();
    machine.on_interrupt(move |_| words.run(&handler, true));
    machine.outcome(move |_, values| {
        values.extend(words.seen.iter().map(|seen| seen.peek() as u64));
        values.extend(words.shared.iter().map(|word| 10 + word.peek() as u64));
    });
    machine
}

fn search(machine: &Machine, reduction: Reduction) -> Exploration {
    let limits = Limits { stop_at_first: false, ..Limits::default() };
    let result = machine.explore(Search::Exhaustive(reduction), limits);
    assert!(result.complete);
    result
}

/// All that the CPUs can read, the digits of all in order, and what the words hold in the end. Every reduction must say
/// the same.
fn ends_of(cpus: &[&[Op]], handler: &[Op], memory: MemoryModel, relaxed: &[Label]) -> BTreeSet<(String, String)> {
    let ends = |reduction| {
        let result = search(&machine(cpus, handler, memory, relaxed), reduction);
        assert!(result.found.is_empty(), "{:?}", result.found);
        let digits = |value: &u64| value.to_string()[1..].to_owned();
        let end = |values: &[u64]| values.iter().map(digits).collect::<String>();
        let (seen, shared) = (..2 * CPUS, 2 * CPUS..);
        let ends = result.outcomes.iter().map(|(_, values)| (end(&values[seen]), end(&values[shared.clone()])));
        ends.collect::<BTreeSet<_>>()
    };
    let full = ends(Reduction::Full);
    assert_eq!(ends(Reduction::States), full);
    if cpus.iter().map(|ops| ops.len()).sum::<usize>() <= 6 && handler.is_empty() {
        assert_eq!(ends(Reduction::None), full);
    }
    full
}

fn reads_of(cpus: &[&[Op]], handler: &[Op], memory: MemoryModel, relaxed: &[Label]) -> BTreeSet<String> {
    ends_of(cpus, handler, memory, relaxed).into_iter().map(|(reads, _)| reads).collect()
}

fn weak(cpus: &[&[Op]]) -> BTreeSet<String> {
    reads_of(cpus, &[], MemoryModel::Weak, &[])
}

/// Whether the CPUs can read this, and the words hold that in the end.
fn ends_in(cpus: &[&[Op]], reads: &str, shared: &str) -> bool {
    ends_of(cpus, &[], MemoryModel::Weak, &[]).contains(&(reads.to_owned(), shared.to_owned()))
}

fn set<const N: usize>(reads: [&str; N]) -> BTreeSet<String> {
    reads.iter().map(|&read| read.to_owned()).collect()
}

/// All digits strings of this length over 0 and 1.
fn all(length: u32) -> BTreeSet<String> {
    (0..1_usize << length).map(|bits| format!("{bits:0width$b}", width = length as usize)).collect()
}

fn all_but<const N: usize>(length: u32, forbidden: [&str; N]) -> BTreeSet<String> {
    &all(length) - &set(forbidden)
}

#[test]
fn store_buffering() {
    for (store, load) in [(Relaxed, Relaxed), (Release, Acquire)] {
        assert_eq!(weak(&[&[Store(X, 1, store), Load(Y, load)], &[Store(Y, 1, store), Load(X, load)]]), all(2));
    }
    let sc = Fence(SeqCst);
    let fenced = [&[Store(X, 1, Relaxed), sc, Load(Y, Relaxed)][..], &[Store(Y, 1, Relaxed), sc, Load(X, Relaxed)]];
    assert_eq!(weak(&fenced), all_but(2, ["00"]));
    assert_eq!(
        weak(&[fenced[0], &[Store(Y, 1, Relaxed), Fence(AcqRel), Load(X, Relaxed)]]),
        all(2),
        "one is not enough"
    );
}

/// A full read-modify-write orders as Linux's do: what is before it and what is behind it. An `AcqRel` one does not.
#[test]
fn store_buffering_with_read_modify_writes() {
    let full = [&[AddFull(X), Load(Y, Relaxed)][..], &[AddFull(Y), Load(X, Relaxed)]];
    assert_eq!(weak(&full), set(["0001", "0100", "0101"]));
    let acq_rel = [&[Add(X, AcqRel), Load(Y, Relaxed)][..], &[Add(Y, AcqRel), Load(X, Relaxed)]];
    assert_eq!(weak(&acq_rel), set(["0000", "0001", "0100", "0101"]));
    // On another word.
    let beside = [
        &[Store(X, 1, Relaxed), AddFull(Z), Load(Y, Relaxed)][..],
        &[Store(Y, 1, Relaxed), AddFull(Z), Load(X, Relaxed)],
    ];
    assert_eq!(weak(&beside), set(["0011", "0111", "1100", "1101"]));
    assert!(reads_of(&beside, &[], MemoryModel::Weak, &[PLANTED]).contains("0010"));
    assert!(!reads_of(&beside, &[], MemoryModel::Tso, &[PLANTED]).contains("0010"), "a locked instruction stays one");
}

#[test]
fn message_passing() {
    let passing =
        |store, load| weak(&[&[Store(X, 1, Relaxed), Store(Y, 1, store)], &[Load(Y, load), Load(X, Relaxed)]]);
    assert_eq!(passing(Release, Acquire), all_but(2, ["10"]));
    for (store, load) in [(Relaxed, Relaxed), (Release, Relaxed), (Relaxed, Acquire)] {
        assert_eq!(passing(store, load), all(2), "{store:?} {load:?}");
    }
    let fenced = |writer, reader| {
        weak(&[
            &[Store(X, 1, Relaxed), Fence(writer), Store(Y, 1, Relaxed)],
            &[Load(Y, Relaxed), Fence(reader), Load(X, Relaxed)],
        ])
    };
    for (writer, reader) in [(Release, Acquire), (AcqRel, AcqRel), (SeqCst, SeqCst), (SeqCst, Acquire)] {
        assert_eq!(fenced(writer, reader), all_but(2, ["10"]), "{writer:?} {reader:?}");
    }
    assert_eq!(fenced(Acquire, Acquire), all(2));
    assert_eq!(fenced(Release, Release), all(2));
}

/// What is planted by label is weakened under `weak`, and nowhere else where it is no fence.
#[test]
fn a_label_is_relaxed() {
    let cpus = [&[Store(X, 1, Relaxed), StoreAt(Y, 1, Release, PLANTED)][..], &[Load(Y, Acquire), Load(X, Relaxed)]];
    assert_eq!(reads_of(&cpus, &[], MemoryModel::Weak, &[]), all_but(2, ["10"]));
    assert_eq!(reads_of(&cpus, &[], MemoryModel::Weak, &[PLANTED]), all(2));
    assert_eq!(reads_of(&cpus, &[], MemoryModel::Tso, &[PLANTED]), all_but(2, ["10"]));
    let fence = FenceAt(SeqCst, PLANTED);
    let cpus = [&[Store(X, 1, Relaxed), fence, Load(Y, Relaxed)][..], &[Store(Y, 1, Relaxed), fence, Load(X, Relaxed)]];
    for memory in [MemoryModel::Tso, MemoryModel::Weak] {
        assert_eq!(reads_of(&cpus, &[], memory, &[]), all_but(2, ["00"]));
        assert_eq!(reads_of(&cpus, &[], memory, &[PLANTED]), all(2));
    }
}

/// RC11 has no load buffering, though hardware has.
#[test]
fn load_buffering() {
    let cpus = [&[Load(X, Relaxed), Store(Y, 1, Relaxed)][..], &[Load(Y, Relaxed), Store(X, 1, Relaxed)]];
    assert_eq!(weak(&cpus), all_but(2, ["11"]));
}

#[test]
fn independent_reads_of_independent_writes() {
    let writers = [&[Store(X, 1, Release)][..], &[Store(Y, 1, Release)]];
    let readers = [&[Load(X, Acquire), Load(Y, Acquire)][..], &[Load(Y, Acquire), Load(X, Acquire)]];
    assert_eq!(weak(&[writers[0], writers[1], readers[0], readers[1]]), all(4));
    let sc = Fence(SeqCst);
    let fenced = [&[Load(X, Relaxed), sc, Load(Y, Relaxed)][..], &[Load(Y, Relaxed), sc, Load(X, Relaxed)]];
    assert_eq!(weak(&[writers[0], writers[1], fenced[0], fenced[1]]), all_but(4, ["1010"]));
}

#[test]
fn causality() {
    // WRC: that the middle one has read is enough, by coherence.
    let wrc = |store, load| {
        weak(&[&[Store(X, 1, Relaxed)], &[Load(X, Relaxed), Store(Y, 1, store)], &[Load(Y, load), Load(X, Relaxed)]])
    };
    assert_eq!(wrc(Release, Acquire), all_but(3, ["110"]));
    assert_eq!(wrc(Relaxed, Acquire), all(3));
    assert_eq!(wrc(Release, Relaxed), all(3));
    // ISA2: through two words.
    let isa2 = |middle| {
        weak(&[
            &[Store(X, 1, Relaxed), Store(Y, 1, Release)],
            &[Load(Y, middle), Store(Z, 1, Release)],
            &[Load(Z, Acquire), Load(X, Relaxed)],
        ])
    };
    assert_eq!(isa2(Acquire), all_but(3, ["110"]));
    assert_eq!(isa2(Relaxed), all(3));
}

#[test]
fn coherence() {
    assert_eq!(weak(&[&[Store(X, 1, Relaxed)], &[Load(X, Relaxed), Load(X, Relaxed)]]), all_but(2, ["10"]));
    // A CPU reads its own store or a later one.
    let own = weak(&[&[Store(X, 1, Relaxed), Load(X, Relaxed)], &[Store(X, 2, Relaxed)]]);
    assert_eq!(own, set(["1", "2"]));
    // Two readers agree on the order of two stores.
    let reader = &[Load(X, Relaxed), Load(X, Relaxed)][..];
    let agree = weak(&[&[Store(X, 1, Relaxed)], &[Store(X, 2, Relaxed)], reader, reader]);
    assert!(agree.contains("1212") && agree.contains("2121") && agree.contains("0102"));
    assert!(!agree.contains("1221") && !agree.contains("2112"));
}

/// The shapes with a store that comes before one that the CPU does not know: R is there, S and 2+2W are left out.
#[test]
fn stores_go_to_the_end() {
    let r = [&[Store(X, 1, Relaxed), Store(Y, 1, Relaxed)][..], &[Store(Y, 2, Relaxed), Load(X, Relaxed)]];
    assert!(ends_in(&r, "0", "120"));
    let sc = Fence(SeqCst);
    let fenced = [&[Store(X, 1, Relaxed), sc, Store(Y, 1, Relaxed)][..], &[Store(Y, 2, Relaxed), sc, Load(X, Relaxed)]];
    assert!(!ends_in(&fenced, "0", "120"));
    for (store, load) in [(Relaxed, Relaxed), (Release, Acquire)] {
        let s = [&[Store(X, 2, Relaxed), Store(Y, 1, store)][..], &[Load(Y, load), Store(X, 1, Relaxed)]];
        assert!(ends_in(&s, "1", "110") && !ends_in(&s, "1", "210"));
    }
    let two = [&[Store(X, 1, Relaxed), Store(Y, 2, Relaxed)][..], &[Store(Y, 1, Relaxed), Store(X, 2, Relaxed)]];
    assert!(ends_in(&two, "", "220") && !ends_in(&two, "", "110"));
}

#[test]
fn release_sequences_go_through_read_modify_writes() {
    let writer = &[Store(X, 1, Relaxed), Store(Y, 1, Release)][..];
    let reader = &[Load(Y, Acquire), Load(X, Relaxed)][..];
    let through = weak(&[writer, &[Add(Y, Relaxed)], reader]);
    assert!(through.contains("121") && !through.contains("120"));
    // A plain store breaks it, and so does one of the same CPU, since C++20.
    let broken = weak(&[writer, &[Load(Y, Relaxed), Store(Y, 2, Relaxed)], reader]);
    assert!(broken.contains("120"));
    assert!(weak(&[&[writer[0], writer[1], Store(Y, 2, Relaxed)], reader]).contains("20"));
}

/// A compare that fails is a load with an order of its own.
#[test]
fn a_compare_that_fails_is_a_load() {
    let writer = &[Store(Y, 1, Relaxed), Store(X, 3, Release)][..];
    let reads = |failure| weak(&[writer, &[Cas(X, AcqRel, failure), Load(Y, Relaxed)]]);
    assert_eq!(reads(Acquire), set(["00", "01", "31"]));
    assert_eq!(reads(Relaxed), set(["00", "01", "30", "31"]));
    // It may fail by an old store, though the newest would have let it succeed: nothing says that the CPU knows that.
    let late = [&[Store(X, 1, Relaxed), Store(Y, 1, Relaxed)][..], &[Load(Y, Relaxed), Cas(X, AcqRel, Relaxed)]];
    assert!(weak(&late).contains("10"));
    let late = [&[Store(X, 1, Relaxed), Store(Y, 1, Release)][..], &[Load(Y, Acquire), Cas(X, AcqRel, Relaxed)]];
    assert!(!weak(&late).contains("10"));
}

/// Read-modify-writes read the newest, whatever their order.
#[test]
fn read_modify_writes_are_atomic() {
    assert_eq!(weak(&[&[Add(X, Relaxed)], &[Add(X, Relaxed)], &[Add(X, Relaxed)]]).len(), 6);
}

/// Contract point 4 of a platform: the interrupted CPU sees what the sender has stored.
#[test]
fn an_interrupt_carries_the_senders_view() {
    let cpus = [&[Store(X, 1, Relaxed), Kick(1)][..], &[Load(Y, Relaxed), Load(X, Relaxed)]];
    let reads = reads_of(&cpus, &[Load(X, Relaxed), Store(Y, 1, Relaxed)], MemoryModel::Weak, &[]);
    // The task's two loads, then the handler's.
    assert_eq!(reads, set(["001", "011", "111"]));
}

#[test]
fn stopping_the_machine_is_a_fence_for_all() {
    let cpus = [&[Store(X, 1, Relaxed), Stop, Store(Y, 1, Relaxed)][..], &[Load(Y, Relaxed), Load(X, Relaxed)]];
    assert_eq!(weak(&cpus), all_but(2, ["10"]));
}

/// A wait ends, whatever old stores could be read, and orders what its last round does.
#[test]
fn a_wait_sees_the_newest_in_the_end() {
    let wait = |store, load| weak(&[&[Store(X, 1, Relaxed), Store(Y, 1, store)], &[Wait(Y, load), Load(X, Relaxed)]]);
    assert_eq!(wait(Release, Acquire), set(["11"]));
    assert_eq!(wait(Relaxed, Relaxed), set(["10", "11"]));
    // What a round that failed has seen is forgotten: the CPU could have come later.
    let twice = [
        &[Store(X, 1, Relaxed), Store(Y, 0, Release), Store(Y, 2, Relaxed)][..],
        &[Wait(Y, Acquire), Load(X, Relaxed)],
    ];
    assert_eq!(weak(&twice), set(["20", "21"]));
    // Random executions end, too.
    let cpus = [&[Store(X, 1, Relaxed), Wait(Y, Relaxed)][..], &[Wait(X, Relaxed), Store(Y, 1, Relaxed)]];
    for search in [
        Search::Random { seed: 3, executions: 2000 },
        Search::Pct { seed: 3, executions: 2000, depth: 3 },
        Search::Bounded(3),
    ] {
        let found = machine(&cpus, &[], MemoryModel::Weak, &[]).explore(search, Limits::default());
        assert!(found.found.is_empty(), "{search:?}: {:?}", found.found);
    }
}

/// An object is freed by a CPU that has seen a flag. The flag must order the accesses before the free.
#[test]
fn a_free_that_nothing_orders_is_a_use_after_free() {
    let run = |store: Ordering, load: Ordering, memory| {
        let machine = Machine::new(Config { cpus: 2, memory, bytes: 4 << 10, ..Config::default() });
        let flag: &'static SimWord<usize> = leak(machine.place("flag", ObjectKind::Other, AtomicWord::new(0)));
        let cache = machine.create_cache("body", ObjectKind::Other, 1, |_| SimWord::<usize>::new(7));
        let body = machine.alloc_at_setup(cache);
        let reader = machine.add_task("reader", move || {
            // SAFETY: the slot stays in the arena; whether it is allocated is what the machine checks.
            unsafe { body.as_ref() }.load(Relaxed);
            flag.store(1, store);
        });
        machine.boot(reader, true);
        let writer = machine.add_task("writer", move || {
            if flag.load(load) == 1 {
                Machine::with(|machine| machine.free(body, core::panic::Location::caller()));
            }
        });
        machine.boot(writer, true);
        let (full, states) = (search(&machine, Reduction::Full), search(&machine, Reduction::States));
        assert_eq!(full.outcomes, states.outcomes);
        assert_eq!(search(&machine, Reduction::None).outcomes, full.outcomes);
        kinds(&full)
    };
    assert_eq!(run(Release, Acquire, MemoryModel::Weak), []);
    for (store, load) in [(Relaxed, Acquire), (Release, Relaxed)] {
        assert_eq!(run(store, load, MemoryModel::Weak), [Kind::Dereferences]);
        assert_eq!(run(store, load, MemoryModel::Tso), []);
    }
}

/// A schedule with stale reads is kept as text and replays exactly, whatever search found it.
#[test]
fn a_stale_read_replays() {
    let make = || {
        let config = Config { cpus: 2, memory: MemoryModel::Weak, bytes: 4 << 10, ..Config::default() };
        let machine = Machine::new(config);
        let words = machine.place_slice("words", ObjectKind::Other, 2, |_| SimWord::<usize>::new(0));
        let words: &'static [SimWord<usize>] = lazytlb_programs::leak_slice(words);
        let writer = machine.add_task("writer", move || {
            words[X].store(1, Relaxed);
            words[Y].store(1, Relaxed);
        });
        let reader = machine.add_task("reader", move || {
            if words[Y].load(Relaxed) == 1 && words[X].load(Relaxed) == 0 {
                Machine::with(|machine| machine.fail(Kind::Assertion, "the older store"));
            }
        });
        machine.boot(writer, true);
        machine.boot(reader, true);
        machine
    };
    for search in [
        Search::Exhaustive(Reduction::Full),
        Search::Exhaustive(Reduction::None),
        Search::Bounded(2),
        Search::Random { seed: 1, executions: 10_000 },
        Search::Pct { seed: 1, executions: 10_000, depth: 2 },
    ] {
        let machine = make();
        let result = machine.explore(search, Limits::default());
        let found = result.found.first().unwrap_or_else(|| panic!("{search:?} finds nothing"));
        let text = found.schedule.to_string();
        assert!(text.contains("read1=1"), "{text}");
        let kept: lazytlb_machine::Schedule = text.parse().unwrap();
        let recording = make().replay(&kept, kept.program).unwrap();
        assert_eq!(recording.verdicts, std::slice::from_ref(&found.verdict));
        let stale = |line: &lazytlb_machine::LogLine| line.what.ends_with("though there is a newer store");
        assert_eq!(recording.log.iter().filter(|line| stale(line)).count(), 1);
        let short = machine.shrink(found, 1000);
        assert!(short.schedule.runs() <= found.schedule.runs());
    }
}
