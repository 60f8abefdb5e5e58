//! What a kernel developer expects of KASAN, after the kernel's own tests (`mm/kasan/kasan_test_c.c`), and what an
//! explorer expects beyond: reset, and a hash of the state.

use lazytlb_kasan::{
    Access, Addr, BadAccess, BadFree, BugType, CacheId, Frame, Geometry, Kasan, Note, ObjectKind, OutOfMemory, Report,
    SlotState, Title, Track,
};
use proptest::prelude::*;

const BASE: Addr = Addr(0xffff_8881_0400_0000);

fn window(quarantine: usize) -> Kasan {
    Kasan::new(Geometry { base: BASE, len: 4096, quarantine })
}

fn with_cache(quarantine: usize, size: usize, slots: usize) -> (Kasan, CacheId) {
    let mut kasan = window(quarantine);
    let cache = kasan.create_cache("mm_struct", ObjectKind::Mm, size, 8, slots).unwrap();
    (kasan, cache)
}

fn alloc(kasan: &mut Kasan, cache: CacheId) -> Addr {
    kasan.alloc(cache, Track::default).unwrap()
}

fn free(kasan: &mut Kasan, addr: Addr) -> Result<(), BadFree> {
    kasan.free(addr, Track::default)
}

fn bug(kasan: &Kasan, addr: Addr, size: usize) -> Option<BugType> {
    kasan.check(addr, size, Access::Read).err().map(|bad| bad.bug)
}

fn plus(addr: Addr, bytes: i64) -> Addr {
    Addr(addr.0.wrapping_add_signed(bytes))
}

#[test]
fn use_after_free_is_found_in_every_granule() {
    let (mut kasan, cache) = with_cache(0, 64, 2);
    let object = alloc(&mut kasan, cache);
    assert_eq!(bug(&kasan, object, 64), None);
    free(&mut kasan, object).unwrap();
    for offset in 0..64 {
        assert_eq!(bug(&kasan, plus(object, offset), 1), Some(BugType::UseAfterFree));
    }
    let bad = kasan.check(plus(object, 8), 8, Access::Write).unwrap_err();
    assert_eq!(bad, BadAccess { addr: plus(object, 8), size: 8, access: Access::Write, bug: BugType::UseAfterFree });
}

#[test]
fn reuse_hides_a_use_after_free_and_a_quarantine_shows_it() {
    let (mut kasan, cache) = with_cache(0, 64, 2);
    let old = alloc(&mut kasan, cache);
    free(&mut kasan, old).unwrap();
    assert_eq!(alloc(&mut kasan, cache), old, "reuse is immediate");
    assert_eq!(bug(&kasan, old, 8), None);
    assert_eq!(kasan.object_at(old).unwrap().generation, 1, "but it can be told");

    let (mut kasan, cache) = with_cache(1, 64, 2);
    let old = alloc(&mut kasan, cache);
    free(&mut kasan, old).unwrap();
    assert_ne!(alloc(&mut kasan, cache), old);
    assert_eq!(bug(&kasan, old, 8), Some(BugType::UseAfterFree));
}

#[test]
fn the_quarantine_gives_back_the_oldest_first() {
    let (mut kasan, cache) = with_cache(2, 64, 3);
    let objects = [(); 3].map(|()| alloc(&mut kasan, cache));
    for object in objects {
        free(&mut kasan, object).unwrap();
    }
    assert_eq!(alloc(&mut kasan, cache), objects[0]);
    assert_eq!(kasan.alloc(cache, Track::default), Err(OutOfMemory), "the other two are held back");
    assert_eq!(kasan.object_at(objects[1]).unwrap().state, SlotState::Quarantined);
}

#[test]
fn the_object_freed_last_is_reused_first() {
    let (mut kasan, cache) = with_cache(0, 64, 3);
    let [first, second, third] = [(); 3].map(|()| alloc(&mut kasan, cache));
    for object in [second, third, first] {
        free(&mut kasan, object).unwrap();
    }
    assert_eq!([(); 3].map(|()| alloc(&mut kasan, cache)), [first, third, second]);
}

#[test]
fn a_double_free_and_an_invalid_free_change_nothing() {
    let (mut kasan, cache) = with_cache(0, 64, 2);
    let object = alloc(&mut kasan, cache);
    assert_eq!(free(&mut kasan, plus(object, 8)), Err(BadFree::InvalidFree));
    assert_eq!(bug(&kasan, object, 64), None, "an invalid free leaves the object alive");
    free(&mut kasan, object).unwrap();
    let before = kasan.state_hash();
    assert_eq!(free(&mut kasan, object), Err(BadFree::DoubleFree));
    assert_eq!(kasan.state_hash(), before);
    let never = kasan.slot_addr(cache, 1);
    assert_eq!(free(&mut kasan, never), Err(BadFree::InvalidFree), "it was never allocated");
    assert_eq!(free(&mut kasan, Addr(0x10)), Err(BadFree::InvalidFree));
    let fixed = kasan.place_static("rq", ObjectKind::PerCpu, 64, 64).unwrap();
    assert_eq!(free(&mut kasan, fixed), Err(BadFree::InvalidFree));
}

#[test]
fn the_last_granule_may_be_partial() {
    let (mut kasan, cache) = with_cache(0, 13, 2);
    let object = alloc(&mut kasan, cache);
    assert_eq!(kasan.shadow_at(plus(object, 8)), Some(5));
    assert_eq!(bug(&kasan, object, 13), None);
    assert_eq!(bug(&kasan, plus(object, 12), 1), None);
    assert_eq!(bug(&kasan, plus(object, 13), 1), Some(BugType::OutOfBounds));
    assert_eq!(kasan.check(object, 16, Access::Read).unwrap_err().addr, plus(object, 13), "the first bad byte");
}

#[test]
fn redzones_lie_on_both_sides() {
    let (mut kasan, cache) = with_cache(0, 64, 2);
    let object = alloc(&mut kasan, cache);
    assert_eq!(bug(&kasan, plus(object, -1), 1), Some(BugType::OutOfBounds));
    assert_eq!(bug(&kasan, plus(object, 64), 8), Some(BugType::OutOfBounds));
    assert_eq!(kasan.shadow_at(plus(object, 64)), Some(0xfc));
}

#[test]
fn addresses_outside_the_window_are_told_apart() {
    let kasan = window(0);
    assert_eq!(bug(&kasan, Addr(0x10), 8), Some(BugType::NullPtrDeref));
    assert_eq!(bug(&kasan, Addr(0x7fff_0000_0000), 8), Some(BugType::UserMemoryAccess));
    assert_eq!(bug(&kasan, Addr(0xdead_0000_0000_0000), 8), Some(BugType::WildMemoryAccess));
    assert_eq!(bug(&kasan, plus(BASE, 4092), 8), Some(BugType::WildMemoryAccess), "across the end");
}

#[test]
fn what_is_still_allocated_can_be_listed() {
    let (mut kasan, cache) = with_cache(0, 64, 3);
    let [first, second, third] = [(); 3].map(|()| alloc(&mut kasan, cache));
    free(&mut kasan, second).unwrap();
    assert_eq!(kasan.live().map(|object| object.addr).collect::<Vec<_>>(), [first, third]);
}

fn track(pid: u32, function: &'static str) -> Track {
    let frames = vec![Frame { function, file: "core/src/mm.rs", line: pid, irq: false }];
    Track { pid, comm: "worker".into(), cpu: 1, step: 7, frames }
}

#[test]
fn two_aux_tracks_are_kept_newest_first() {
    let (mut kasan, cache) = with_cache(0, 64, 1);
    kasan.set_recording(true);
    let object = kasan.alloc(cache, || track(1, "mm_alloc")).unwrap();
    for pid in [2, 3, 4] {
        kasan.record_aux(object, || track(pid, "call_rcu"));
    }
    let info = kasan.object_at(object).unwrap();
    assert_eq!(info.aux.iter().map(|track| track.pid).collect::<Vec<_>>(), [4, 3]);
    assert_eq!(info.allocated.unwrap().pid, 1);
}

#[test]
fn a_full_window_says_so() {
    let mut kasan = window(0);
    assert!(kasan.create_cache("huge", ObjectKind::Other, 4096, 8, 1).is_err());
    assert!(kasan.place_static("huge", ObjectKind::Other, 4090, 8).is_err());
}

/// Order and phrases of a report of Linux 6.12 (KASAN_GENERIC, KASAN_EXTRA_INFO), line by line.
#[test]
fn a_report_reads_like_the_kernels() {
    let (mut kasan, cache) = with_cache(0, 256, 2);
    kasan.set_recording(true);
    let object = kasan.alloc(cache, || track(385, "mm_alloc")).unwrap();
    kasan.record_aux(object, || track(386, "call_rcu"));
    kasan.free(object, || track(386, "__mmdrop")).unwrap();
    let frame = |function, irq| Frame { function, file: "core/src/switcher.rs", line: 12, irq };
    let by = Track {
        pid: 87,
        comm: "kthread".into(),
        cpu: 1,
        step: 99,
        frames: vec![frame("do_shoot_lazy_tlb", false), frame("on_ipi", true), frame("context_switch", false)],
    };
    let title = Title::Access { bug: BugType::UseAfterFree, access: Access::Read, size: 8 };
    let notes = [Note { heading: "Replay".into(), lines: vec!["lazytlb litmus seed".into()] }];
    let report = Report { kasan: &kasan, title, addr: plus(object, 128), by: &by, notes: &notes };
    insta::assert_snapshot!(report.to_string());
}

#[test]
fn a_bad_free_and_a_rule_have_headers_of_their_own() {
    let (mut kasan, cache) = with_cache(0, 64, 1);
    let object = alloc(&mut kasan, cache);
    let by = track(5, "mmdrop");
    let first_lines = |title| {
        let text = Report { kasan: &kasan, title, addr: object, by: &by, notes: &[] }.to_string();
        text.lines().skip(1).take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        first_lines(Title::Free(BadFree::DoubleFree)),
        [
            "BUG: KASAN: double-free in mmdrop (core/src/mm.rs:5)".to_owned(),
            format!("Free of addr {object} by task worker/5")
        ]
    );
    assert_eq!(
        first_lines(Title::Rule { title: "hardware-reaches-freed-table", action: "Page walk" }),
        [
            "BUG: KASAN: hardware-reaches-freed-table in mmdrop (core/src/mm.rs:5)".to_owned(),
            format!("Page walk at addr {object} by task worker/5")
        ]
    );
}

/// A model of what the window should do, with no cleverness in it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Oracle {
    /// The slots to hand out next, the first one first.
    free: Vec<usize>,
    quarantine: Vec<usize>,
    live: Vec<usize>,
    keep: usize,
}

impl Oracle {
    fn alloc(&mut self) -> Option<usize> {
        if self.free.is_empty() {
            return None;
        }
        let slot = self.free.remove(0);
        self.live.push(slot);
        self.live.sort();
        Some(slot)
    }

    fn free(&mut self, slot: usize) -> bool {
        let Some(at) = self.live.iter().position(|&live| live == slot) else { return false };
        self.live.remove(at);
        self.quarantine.push(slot);
        if self.quarantine.len() > self.keep {
            let oldest = self.quarantine.remove(0);
            self.free.insert(0, oldest);
        }
        true
    }
}

proptest! {
    /// Any sequence of allocations and frees: the same slots as the oracle's, the same answers, equal hashes exactly
    /// for equal states, and reset comes back to where it was sealed.
    #[test]
    fn random_histories_agree_with_the_oracle(
        keep in 0usize..3,
        steps in prop::collection::vec(prop::option::of(0usize..4), 0..40),
    ) {
        let (mut kasan, cache) = with_cache(keep, 40, 4);
        kasan.seal();
        let fresh = kasan.state_hash();
        let mut oracle = Oracle { free: (0..4).collect(), quarantine: vec![], live: vec![], keep };
        let mut seen: Vec<(u64, Oracle)> = vec![(fresh, oracle.clone())];
        for step in &steps {
            match step {
                None => {
                    let got = kasan.alloc(cache, Track::default).ok();
                    prop_assert_eq!(got, oracle.alloc().map(|slot| kasan.slot_addr(cache, slot)));
                }
                Some(slot) => {
                    let addr = kasan.slot_addr(cache, *slot);
                    let got = free(&mut kasan, addr).is_ok();
                    prop_assert_eq!(got, oracle.free(*slot));
                }
            }
            for slot in 0..4 {
                let accessible = bug(&kasan, kasan.slot_addr(cache, slot), 8).is_none();
                prop_assert_eq!(accessible, oracle.live.contains(&slot));
            }
            for (hash, state) in &seen {
                prop_assert_eq!(*hash == kasan.state_hash(), *state == oracle, "{:?} {:?}", state, &oracle);
            }
            seen.push((kasan.state_hash(), oracle.clone()));
        }
        kasan.reset();
        prop_assert_eq!(kasan.state_hash(), fresh);
        for slot in 0..4 {
            prop_assert!(bug(&kasan, kasan.slot_addr(cache, slot), 8).is_some());
        }
        prop_assert_eq!(alloc(&mut kasan, cache), kasan.slot_addr(cache, 0));
    }
}
