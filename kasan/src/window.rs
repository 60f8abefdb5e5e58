//! [`Kasan`]: a window of addresses with its shadow, its objects, and their history.

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::shadow::{
    Access, Addr, BadAccess, FREED, FREED_WITH_TRACK, GRANULE, REDZONE, bug_in, bug_outside, first_bad,
};
use crate::track::Track;

/// Where the window lies and how it behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// The address of its first byte, a multiple of 128 so that the rows of a report are aligned.
    pub base: Addr,
    /// Its size in bytes.
    pub len: usize,
    /// How many freed objects are held back before the oldest is reused; 0 for reuse at once.
    pub quarantine: usize,
}

/// What an object is, for the leak check and for rules about single kinds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ObjectKind {
    /// An address space.
    Mm,
    /// A page table.
    Table,
    /// A page frame.
    Frame,
    /// A task.
    Task,
    /// A subscriber of a notifier chain.
    Subscriber,
    /// A per-CPU area.
    PerCpu,
    /// Something else.
    Other,
}

/// A cache of objects of one size.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CacheId(usize);

/// The window has no room left for what was to be placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the window is full")
    }
}

impl core::error::Error for Full {}

/// All slots of the cache are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfMemory;

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the cache has no free object left")
    }
}

impl core::error::Error for OutOfMemory {}

/// A free that must not be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadFree {
    /// The object is free already.
    DoubleFree,
    /// No object that can be freed starts there.
    InvalidFree,
}

impl fmt::Display for BadFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadFree::DoubleFree => "double-free",
            BadFree::InvalidFree => "invalid-free",
        })
    }
}

/// What a slot holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotState {
    /// Never allocated.
    Fresh,
    /// An object.
    Live,
    /// A freed object, still held back.
    Quarantined,
    /// A freed object that the next allocation may reuse.
    Freed,
}

/// What is known of an object.
#[derive(Clone, Debug)]
pub struct ObjectInfo<'a> {
    /// Its first byte.
    pub addr: Addr,
    /// Its size in bytes.
    pub size: usize,
    /// The cache, or the name of a static object.
    pub name: &'static str,
    /// Which slot of the cache it is, or which element of a static array.
    pub index: usize,
    /// What it is.
    pub kind: ObjectKind,
    /// Whether it is alive.
    pub state: SlotState,
    /// How many objects were here before.
    pub generation: u64,
    /// Who allocated it; while recording only.
    pub allocated: Option<&'a Track>,
    /// Who freed it; while recording only.
    pub freed: Option<&'a Track>,
    /// Work that was queued with it, newest first; while recording only.
    pub aux: &'a [Track],
}

#[derive(Clone, Debug)]
struct Cache {
    name: &'static str,
    kind: ObjectKind,
    size: usize,
    /// From slot to slot, redzone included.
    stride: usize,
    start: usize,
    slots: usize,
    /// The index of its first slot among all slots.
    first_slot: usize,
    /// Free slots, the next to be handed out last.
    free: Vec<usize>,
}

#[derive(Clone, Debug, Default)]
struct History {
    allocated: Option<Track>,
    freed: Option<Track>,
    aux: Vec<Track>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    state: SlotState,
    generation: u64,
}

#[derive(Clone, Copy, Debug)]
struct Static {
    start: usize,
    /// The size of one element, and how many there are.
    size: usize,
    len: usize,
    name: &'static str,
    kind: ObjectKind,
}

/// Which objects there are at some moment: what [`Kasan::save`] takes and [`Kasan::restore`] puts back.
#[derive(Clone, Debug)]
pub struct Saved {
    version: u64,
    shadow: Vec<u8>,
    slots: Vec<Slot>,
    free: Vec<Vec<usize>>,
    quarantine: VecDeque<(usize, usize)>,
    hash: u64,
}

impl Saved {
    /// What [`Kasan::version`] was.
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// A window of addresses, with one shadow byte for each 8 of them.
///
/// What a simulated program may do wrong is a `Result`; misuse of this type itself (an unknown cache, a window that is
/// not aligned) panics.
#[derive(Clone, Debug)]
pub struct Kasan {
    geometry: Geometry,
    shadow: Vec<u8>,
    /// The first byte that is not given out yet.
    end: usize,
    statics: Vec<Static>,
    caches: Vec<Cache>,
    slots: Vec<Slot>,
    history: Vec<History>,
    quarantine: VecDeque<(usize, usize)>,
    hash: u64,
    recording: bool,
    /// What [`Kasan::reset`] puts back.
    sealed: Option<Saved>,
    version: u64,
    /// The highest version so far.
    newest: u64,
}

/// The redzone before the first object and behind each one: two granules, as the kernel's smallest.
const GAP: usize = 16;

impl Kasan {
    /// A window without objects: all of it is redzone.
    ///
    /// # Panics
    /// If the base or the length is not a multiple of 128.
    pub fn new(geometry: Geometry) -> Kasan {
        assert!(
            geometry.base.0.is_multiple_of(128) && geometry.len.is_multiple_of(128),
            "a window is whole rows of 128 bytes"
        );
        Kasan {
            geometry,
            shadow: vec![REDZONE; geometry.len / GRANULE],
            end: 0,
            statics: Vec::new(),
            caches: Vec::new(),
            slots: Vec::new(),
            history: Vec::new(),
            quarantine: VecDeque::new(),
            hash: 0,
            recording: false,
            sealed: None,
            version: 0,
            newest: 0,
        }
    }

    /// The window.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Takes `size` bytes, with a redzone before them.
    fn reserve(&mut self, size: usize, align: usize) -> Result<usize, Full> {
        let align = align.max(GRANULE);
        let start = (self.end + GAP).next_multiple_of(align);
        let end = start + size.next_multiple_of(GRANULE);
        if end + GAP > self.geometry.len {
            return Err(Full);
        }
        self.end = end;
        Ok(start)
    }

    /// Places an object that is never freed.
    ///
    /// # Errors
    /// [`Full`] if it does not fit.
    pub fn place_static(
        &mut self,
        name: &'static str,
        kind: ObjectKind,
        size: usize,
        align: usize,
    ) -> Result<Addr, Full> {
        self.place_static_array(name, kind, size, 1, align)
    }

    /// Places an array of `len` objects of `size` bytes that are never freed, one right behind the other.
    ///
    /// # Errors
    /// [`Full`] if it does not fit.
    pub fn place_static_array(
        &mut self,
        name: &'static str,
        kind: ObjectKind,
        size: usize,
        len: usize,
        align: usize,
    ) -> Result<Addr, Full> {
        let start = self.reserve(size * len, align)?;
        unpoison(&mut self.shadow, start, size * len);
        self.statics.push(Static { start, size, len, name, kind });
        Ok(self.addr(start))
    }

    /// Makes a cache of `slots` objects of `size` bytes, none of which is allocated.
    ///
    /// # Errors
    /// [`Full`] if it does not fit.
    pub fn create_cache(
        &mut self,
        name: &'static str,
        kind: ObjectKind,
        size: usize,
        align: usize,
        slots: usize,
    ) -> Result<CacheId, Full> {
        let align = align.max(GRANULE);
        let stride = (size + GAP).next_multiple_of(align);
        let start = self.reserve(stride * slots, align)?;
        let first_slot = self.slots.len();
        let cache = self.caches.len();
        // The lowest address is handed out first.
        let free: Vec<usize> = (0..slots).rev().collect();
        for (position, &slot) in free.iter().enumerate() {
            self.hash ^= free_term(cache, position, slot);
        }
        self.caches.push(Cache { name, kind, size, stride, start, slots, first_slot, free });
        self.slots.resize(first_slot + slots, Slot { state: SlotState::Fresh, generation: 0 });
        self.history.resize(first_slot + slots, History::default());
        Ok(CacheId(cache))
    }

    /// The address of slot `index` of a cache, allocated or not.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn slot_addr(&self, cache: CacheId, index: usize) -> Addr {
        let cache = &self.caches[cache.0];
        assert!(index < cache.slots, "cache {} has {} slots", cache.name, cache.slots);
        self.addr(cache.start + index * cache.stride)
    }

    /// Allocates an object: the one freed last, if any.
    ///
    /// # Errors
    /// [`OutOfMemory`] if all slots are taken or in quarantine.
    pub fn alloc(&mut self, cache: CacheId, track: impl FnOnce() -> Track) -> Result<Addr, OutOfMemory> {
        let id = cache.0;
        let cache = &mut self.caches[id];
        let slot = cache.free.pop().ok_or(OutOfMemory)?;
        self.hash ^= free_term(id, cache.free.len(), slot) ^ live_term(id, slot);
        let start = cache.start + slot * cache.stride;
        unpoison(&mut self.shadow, start, cache.size);
        let global = cache.first_slot + slot;
        let state = &mut self.slots[global];
        if state.state == SlotState::Freed {
            state.generation += 1;
        }
        state.state = SlotState::Live;
        if self.recording {
            self.history[global] = History { allocated: Some(track()), ..History::default() };
        }
        self.is_another_version();
        Ok(self.addr(start))
    }

    /// Where the next allocation from a cache will be.
    pub fn next_free(&self, cache: CacheId) -> Option<Addr> {
        self.caches[cache.0].free.last().map(|&slot| self.slot_addr(cache, slot))
    }

    /// The free slots of a cache, in the order in which they were freed.
    ///
    /// # Panics
    /// If there is no such cache.
    pub fn free_slots(&self, cache: CacheId) -> &[usize] {
        &self.caches[cache.0].free
    }

    /// Forgets in what order the slots of a cache were freed: the next allocation takes `first`, if that is free, and later
    /// ones the lowest. For who compares states: which slot is used then follows from which are.
    ///
    /// # Panics
    /// If there is no such cache.
    pub fn settle(&mut self, cache: CacheId, first: Option<usize>) {
        let (id, free) = (cache.0, &mut self.caches[cache.0].free);
        let hash = |free: &[usize]| free.iter().enumerate().fold(0, |sum, (at, &slot)| sum ^ free_term(id, at, slot));
        self.hash ^= hash(free);
        free.sort_unstable_by_key(|&slot| (Some(slot) == first, core::cmp::Reverse(slot)));
        self.hash ^= hash(free);
        self.is_another_version();
    }

    /// Frees the object at `addr`.
    ///
    /// # Errors
    /// As the kernel decides it: [`BadFree::InvalidFree`] if no object that can be freed starts there, and
    /// [`BadFree::DoubleFree`] if it is free already. Nothing changes then.
    pub fn free(&mut self, addr: Addr, track: impl FnOnce() -> Track) -> Result<(), BadFree> {
        let (id, slot) = self.slot_at(addr).ok_or(BadFree::InvalidFree)?;
        let cache = &self.caches[id];
        let (start, size, global) = (cache.start + slot * cache.stride, cache.size, cache.first_slot + slot);
        if self.addr(start) != addr {
            return Err(BadFree::InvalidFree);
        }
        match self.slots[global].state {
            SlotState::Live => {}
            SlotState::Fresh => return Err(BadFree::InvalidFree),
            SlotState::Freed | SlotState::Quarantined => return Err(BadFree::DoubleFree),
        }
        self.is_another_version();
        self.hash ^= live_term(id, slot);
        let granules = start / GRANULE..(start + size).div_ceil(GRANULE);
        self.shadow[granules.clone()].fill(FREED);
        self.shadow[granules.start] = FREED_WITH_TRACK;
        if self.recording {
            self.history[global].freed = Some(track());
        }
        if self.geometry.quarantine == 0 {
            self.give_back(id, slot);
        } else {
            self.slots[global].state = SlotState::Quarantined;
            self.hash_quarantine();
            self.quarantine.push_back((id, slot));
            if self.quarantine.len() > self.geometry.quarantine
                && let Some((id, slot)) = self.quarantine.pop_front()
            {
                self.give_back(id, slot);
            }
            self.hash_quarantine();
        }
        Ok(())
    }

    fn give_back(&mut self, id: usize, slot: usize) {
        let cache = &mut self.caches[id];
        self.hash ^= free_term(id, cache.free.len(), slot);
        cache.free.push(slot);
        self.slots[cache.first_slot + slot].state = SlotState::Freed;
    }

    /// Adds the quarantine to the hash, or takes it out again.
    fn hash_quarantine(&mut self) {
        for (position, &(cache, slot)) in self.quarantine.iter().enumerate() {
            self.hash ^= mix(0x51, cache, mix(0x52, position, slot as u64));
        }
    }

    /// Notes work that was queued with an object, for its report. Only the newest two are kept, as in the kernel.
    pub fn record_aux(&mut self, addr: Addr, track: impl FnOnce() -> Track) {
        if self.recording
            && let Some((id, slot)) = self.slot_at(addr)
        {
            let aux = &mut self.history[self.caches[id].first_slot + slot].aux;
            aux.insert(0, track());
            aux.truncate(2);
        }
    }

    /// Whether `size` bytes at `addr` may be accessed.
    ///
    /// # Errors
    /// What the first bad byte is.
    #[inline]
    pub fn check(&self, addr: Addr, size: usize, access: Access) -> Result<(), BadAccess> {
        let offset = addr.0.wrapping_sub(self.geometry.base.0) as usize;
        if size <= GRANULE && offset.is_multiple_of(GRANULE) && self.shadow.get(offset / GRANULE) == Some(&0) {
            return Ok(());
        }
        self.check_slowly(addr, size, access)
    }

    #[cold]
    fn check_slowly(&self, addr: Addr, size: usize, access: Access) -> Result<(), BadAccess> {
        let offset = addr.0.wrapping_sub(self.geometry.base.0);
        if offset >= self.geometry.len as u64 || size as u64 > self.geometry.len as u64 - offset {
            return Err(BadAccess { addr, size, access, bug: bug_outside(addr) });
        }
        let offset = offset as usize;
        let shadow = &self.shadow[offset / GRANULE..];
        match first_bad(shadow, offset % GRANULE, size) {
            None => Ok(()),
            Some(byte) => {
                let at = offset + byte;
                Err(BadAccess { addr: self.addr(at), size, access, bug: bug_in(&self.shadow, at / GRANULE) })
            }
        }
    }

    /// The cache that has a slot at this address.
    pub fn cache_at(&self, addr: Addr) -> Option<CacheId> {
        self.slot_at(addr).map(|(id, _)| CacheId(id))
    }

    /// The object that `addr` belongs to, or the nearest one if it is in a redzone.
    pub fn object_at(&self, addr: Addr) -> Option<ObjectInfo<'_>> {
        let offset = addr.0.checked_sub(self.geometry.base.0)? as usize;
        if let Some((id, slot)) = self.slot_at(addr) {
            return Some(self.info(id, slot));
        }
        let inside = |place: &&Static| (place.start..place.start + place.size * place.len).contains(&offset);
        let place = self.statics.iter().find(inside)?;
        let index = (offset - place.start) / place.size;
        Some(ObjectInfo {
            addr: self.addr(place.start + index * place.size),
            size: place.size,
            name: place.name,
            index,
            kind: place.kind,
            state: SlotState::Live,
            generation: 0,
            allocated: None,
            freed: None,
            aux: &[],
        })
    }

    /// All objects of caches that are allocated now, in the order of their addresses: what may have leaked.
    pub fn live(&self) -> impl Iterator<Item = ObjectInfo<'_>> {
        let all = self.caches.iter().enumerate().flat_map(|(id, cache)| (0..cache.slots).map(move |slot| (id, slot)));
        all.map(|(id, slot)| self.info(id, slot)).filter(|object| object.state == SlotState::Live)
    }

    fn info(&self, id: usize, slot: usize) -> ObjectInfo<'_> {
        let cache = &self.caches[id];
        let (state, history) = (&self.slots[cache.first_slot + slot], &self.history[cache.first_slot + slot]);
        ObjectInfo {
            addr: self.addr(cache.start + slot * cache.stride),
            size: cache.size,
            name: cache.name,
            index: slot,
            kind: cache.kind,
            state: state.state,
            generation: state.generation,
            allocated: history.allocated.as_ref(),
            freed: history.freed.as_ref(),
            aux: &history.aux,
        }
    }

    /// The cache and slot around an address, the redzone behind the object included.
    fn slot_at(&self, addr: Addr) -> Option<(usize, usize)> {
        let offset = usize::try_from(addr.0.checked_sub(self.geometry.base.0)?).ok()?;
        let inside = |cache: &Cache| (cache.start..cache.start + cache.slots * cache.stride).contains(&offset);
        let id = self.caches.iter().position(inside)?;
        Some((id, (offset - self.caches[id].start) / self.caches[id].stride))
    }

    /// The shadow byte of the granule at `addr`, if it is in the window.
    pub fn shadow_at(&self, addr: Addr) -> Option<u8> {
        let offset = addr.0.checked_sub(self.geometry.base.0)?;
        self.shadow.get(usize::try_from(offset).ok()? / GRANULE).copied()
    }

    /// Whether tracks are kept from now on. Those kept so far are forgotten.
    pub fn set_recording(&mut self, recording: bool) {
        self.recording = recording;
        self.history.fill(History::default());
    }

    fn is_another_version(&mut self) {
        self.newest += 1;
        self.version = self.newest;
    }

    /// A number for the objects that there are now: it changes when one is allocated or freed, and comes back only when
    /// what was saved under it is restored.
    #[inline]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The objects that there are now. Tracks are not among what is saved.
    pub fn save(&self) -> Saved {
        Saved {
            version: self.version,
            shadow: self.shadow.clone(),
            slots: self.slots.clone(),
            free: self.caches.iter().map(|cache| cache.free.clone()).collect(),
            quarantine: self.quarantine.clone(),
            hash: self.hash,
        }
    }

    /// Puts saved objects back; costs nothing if none was allocated or freed since.
    pub fn restore(&mut self, saved: &Saved) {
        if self.version == saved.version {
            return;
        }
        self.version = saved.version;
        self.shadow.copy_from_slice(&saved.shadow);
        self.slots.copy_from_slice(&saved.slots);
        for (cache, free) in self.caches.iter_mut().zip(&saved.free) {
            cache.free.clone_from(free);
        }
        self.quarantine.clone_from(&saved.quarantine);
        self.hash = saved.hash;
    }

    /// Makes the state now the one that [`reset`](Self::reset) comes back to.
    pub fn seal(&mut self) {
        self.sealed = Some(self.save());
    }

    /// Puts the sealed state back; costs nothing if nothing was allocated or freed since. Tracks are forgotten.
    ///
    /// # Panics
    /// If nothing was sealed.
    pub fn reset(&mut self) {
        if self.recording {
            self.history.fill(History::default());
        }
        let sealed = self.sealed.take().expect("seal comes before reset");
        self.restore(&sealed);
        self.sealed = Some(sealed);
    }

    /// A hash of all that matters for the future: which slots are live, and in which order the others will be reused.
    ///
    /// Equal states that were reached in different ways have equal hashes; generations and tracks are not in it.
    #[inline]
    pub fn state_hash(&self) -> u64 {
        self.hash
    }

    fn addr(&self, offset: usize) -> Addr {
        Addr(self.geometry.base.0 + offset as u64)
    }
}

fn unpoison(shadow: &mut [u8], start: usize, size: usize) {
    let (whole, rest) = (size / GRANULE, size % GRANULE);
    let first = start / GRANULE;
    shadow[first..first + whole].fill(0);
    if rest != 0 {
        shadow[first + whole] = rest as u8;
    }
}

fn free_term(cache: usize, position: usize, slot: usize) -> u64 {
    mix(0x46, cache, mix(0x47, position, slot as u64))
}

fn live_term(cache: usize, slot: usize) -> u64 {
    mix(0x4c, cache, slot as u64)
}

/// A term of the hash. Numbers are small and close together here, so each is multiplied before it meets another, and a
/// constant keeps zeros from vanishing.
fn mix(tag: u64, id: usize, value: u64) -> u64 {
    let mut x = (id as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ tag.wrapping_mul(0xd6e8_feb8_6659_fd93);
    x = x.rotate_left(29).wrapping_add(value.wrapping_add(1).wrapping_mul(0xff51_afd7_ed55_8ccd));
    x ^= x >> 32;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 29
}
