package audience

import (
	"iter"
	"math/bits"
	"unsafe"
)

// shardBits is how many bits of a hash choose its shard. Shards grow one at a
// time, so that growing takes the memory of one shard twice and not of all.
const (
	shardBits = 10
	shards    = 1 << shardBits
)

// shard and at are different parts of a hash: the shard, and the place in it of
// all 2^32.
func shard(h uint64) uint32 { return uint32(h >> (64 - shardBits)) }
func at(h uint64) uint32    { return uint32(h >> (32 - shardBits)) } //nolint:gosec // the bits below the shard's

// numbers is a set of numbers other than zero.
type numbers struct {
	shards [shards]table[uint64]
	used   int
}

// add is add of a table. The set takes what it grows by from budget and computes
// hashes again with hashOf.
func (n *numbers) add(number, hash uint64, budget *int64, hashOf func(uint64) uint64) (bool, error) {
	isNew, err := n.shards[shard(hash)].add(number, at(hash), budget, func(m uint64) uint32 { return at(hashOf(m)) })
	if isNew {
		n.used++
	}
	return isNew, err
}

// has reports whether number is there.
func (n *numbers) has(number, hash uint64) bool { return n.shards[shard(hash)].has(number, at(hash)) }

// peek reads the place of a hash.
func (n *numbers) peek(hash uint64) uint64 { return n.shards[shard(hash)].peek(at(hash)) }

// bytes is what the set has taken.
func (n *numbers) bytes() (total int64) {
	for i := range n.shards {
		total += int64(8 * len(n.shards[i].slots))
	}
	return total
}

// all returns the numbers.
func (n *numbers) all() iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for i := range n.shards {
			for _, number := range n.shards[i].slots {
				if number != 0 && !yield(number) {
					return
				}
			}
		}
	}
}

// table is a hash table with linear probing; the zero key is an empty slot.
type table[K comparable] struct {
	slots []K
	used  int
}

const (
	minSlots = 16
	// A table that is four fifths full grows by half while it is small, then by a
	// quarter: a large one takes 1.25 to 1.6 slots for each key.
	fullNum, fullDen = 4, 5
	largeSlots       = 64
)

// add adds key, whose place among all 2^32 is given, and reports whether it was not
// there. The table takes what it grows by from budget and computes places again
// with placeOf.
func (t *table[K]) add(key K, at uint32, budget *int64, placeOf func(K) uint32) (bool, error) {
	if len(t.slots) > 0 {
		i := t.slot(at)
		for ; t.slots[i] != *new(K); i = t.after(i) {
			if t.slots[i] == key {
				return false, nil
			}
		}
		if t.used*fullDen < len(t.slots)*fullNum {
			t.slots[i] = key
			t.used++
			return true, nil
		}
	}
	if err := t.grow(budget, placeOf); err != nil {
		return false, err
	}
	t.put(key, at)
	t.used++
	return true, nil
}

// has reports whether key is there.
func (t *table[K]) has(key K, at uint32) bool {
	if len(t.slots) == 0 {
		return false
	}
	for i := t.slot(at); t.slots[i] != *new(K); i = t.after(i) {
		if t.slots[i] == key {
			return true
		}
	}
	return false
}

// peek reads a place.
func (t *table[K]) peek(at uint32) (key K) {
	if len(t.slots) > 0 {
		key = t.slots[t.slot(at)]
	}
	return key
}

// put stores a key that is not there.
func (t *table[K]) put(key K, at uint32) {
	i := t.slot(at)
	for t.slots[i] != *new(K) {
		i = t.after(i)
	}
	t.slots[i] = key
}

// slot scales a place to the table's size.
func (t *table[K]) slot(at uint32) int {
	hi, _ := bits.Mul64(uint64(at)<<32, uint64(len(t.slots)))
	return int(hi)
}

// after is the next slot, around the end.
func (t *table[K]) after(i int) int {
	if i++; i == len(t.slots) {
		return 0
	}
	return i
}

// grow makes room.
func (t *table[K]) grow(budget *int64, placeOf func(K) uint32) error {
	old := t.slots
	keyBytes := int(unsafe.Sizeof(*new(K)))
	size := max(minSlots, len(old)+len(old)/2)
	if len(old) >= largeSlots {
		size = len(old) + len(old)/4
	}
	taken := int64((size - len(old)) * keyBytes)
	if taken > *budget {
		return errBudget
	}
	*budget -= taken
	t.slots = make([]K, size)
	for _, key := range old {
		if key != *new(K) {
			t.put(key, placeOf(key))
		}
	}
	return nil
}
