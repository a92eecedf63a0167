package audience

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/bits"
	"unsafe"
)

// errBudget says that the set may not grow.
var errBudget = errors.New("memory budget spent")

const (
	// shardBits is how many bits of a key choose its shard. Shards grow one at a
	// time, so that growing takes the memory of one shard twice and not of all.
	shardBits = 10
	shards    = 1 << shardBits

	// A number of the North American plan, after "+1", is below 10^10 < 2^34. Its
	// shard is chosen by 18 bits of it, mixed; only the other 16 are kept.
	planDigits    = 10
	planBits      = 34
	planMask      = 1<<planBits - 1
	planShardBits = 18
	planShards    = 1 << planShardBits
	restBits      = planBits - planShardBits
)

// people is a set of identifiers, exact for phone numbers. An e-mail address is
// known by 128 bits of a SHA-256 under a random key: among 10 million addresses
// two are taken for one with a probability below 10^-24.
//
// Numbers of the North American plan, the bulk of all, take 2 bytes a slot, other
// numbers 8, everything else 16.
type people struct {
	budget int64 // bytes that may still be taken

	plan   []table[uint16] // planShards, once there is a number for them
	zeros  []uint64        // bit by shard: it has the number whose 16 bits are an empty slot's
	phones [shards]table[uint64]
	others [shards]table[digest]

	// Random, so that nobody can choose identifiers that crowd a shard.
	planKey, phoneKey uint64
	hashed            []byte // the key of the hash, with room for an identifier

	fetched uint64
}

// digest is the 128 bits that stand for an identifier; its last bit is set.
type digest [2]uint64

// hashKeyBytes leaves 39 bytes of the first block of SHA-256 for the address.
const hashKeyBytes = 16

func newPeople(budget int64) (*people, error) {
	var seed [16 + hashKeyBytes]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return nil, err
	}
	return &people{
		budget:   budget,
		planKey:  binary.LittleEndian.Uint64(seed[0:]),
		phoneKey: binary.LittleEndian.Uint64(seed[8:]),
		hashed:   append(make([]byte, 0, 512), seed[16:]...),
	}, nil
}

// empty returns an empty set with a budget of its own, for which persons are the
// same.
func (p *people) empty(budget int64) *people {
	return &people{budget: budget, planKey: p.planKey, phoneKey: p.phoneKey, hashed: p.hashed}
}

// person is an identifier as the set keeps it.
type person struct {
	kind  kind
	shard uint32
	place uint32 // of all 2^32
	key   digest // of a number only the first half
}

// kind says which tables a person is in.
type kind uint8

const (
	ofPlan kind = iota
	ofPhone
	ofOther
)

// person returns what stands for id. It does not keep id.
func (p *people) person(id []byte) person {
	number, ok := e164(id)
	switch {
	case !ok:
		p.hashed = append(p.hashed[:hashKeyBytes], id...)
		sum := sha256.Sum256(p.hashed)
		key := digest{binary.LittleEndian.Uint64(sum[0:]), binary.LittleEndian.Uint64(sum[8:]) | 1}
		return otherPerson(key)
	case len(id) == len("+1")+planDigits && id[1] == '1':
		return p.planned(number - 1e10)
	}
	return p.phonePerson(number)
}

func otherPerson(key digest) person { return person{ofOther, shard(key[0]), place(key[0]), key} }

func (p *people) phonePerson(number uint64) person {
	h := mix(number ^ p.phoneKey)
	return person{ofPhone, shard(h), place(h), digest{number}}
}

// planned returns what stands for a number of ten digits. The mixing is a
// bijection on 34 bits: a shard and a key are the whole number.
func (p *people) planned(number uint64) person {
	h := (number ^ p.planKey) & planMask
	h = h * 0x9E3779B97F4A7C15 & planMask
	h ^= h >> (planBits / 2)
	h = h * 0xBF58476D1CE4E5B9 & planMask
	return plannedPerson(h)
}

// plannedPerson is a number of ten digits, mixed.
func plannedPerson(h uint64) person {
	key := uint16(h)                                                                  //nolint:gosec // the other bits are the shard
	return person{ofPlan, uint32(h >> restBits), planPlace(key), digest{uint64(key)}} //nolint:gosec // 18 bits
}

// planPlace spreads the keys of a shard over 32 bits.
func planPlace(key uint16) uint32 { return uint32(key) << (32 - restBits) }

// shard and place are different parts of a hash.
func shard(h uint64) uint32 { return uint32(h >> (64 - shardBits)) }
func place(h uint64) uint32 { return uint32(h >> (32 - shardBits)) }

// fetch reads where each of several persons would be. The reads do not wait for
// each other, as those of add do: for a large set this halves the time.
func (p *people) fetch(batch []person) {
	var read uint64
	for i := range batch {
		switch b := &batch[i]; b.kind {
		case ofPlan:
			if p.plan != nil {
				read ^= uint64(p.plan[b.shard].peek(b.place))
			}
		case ofPhone:
			read ^= p.phones[b.shard].peek(b.place)
		default:
			read ^= p.others[b.shard].peek(b.place)[0]
		}
	}
	p.fetched = read // or the compiler would drop the reads
}

// has reports whether a person is in the set.
func (p *people) has(who person) bool {
	switch who.kind {
	case ofPlan:
		if p.plan == nil {
			return false
		}
		if who.key[0] == 0 {
			return p.zeros[who.shard/64]&(1<<(who.shard%64)) != 0
		}
		return p.plan[who.shard].has(uint16(who.key[0]), who.place) //nolint:gosec // it was put there as that
	case ofPhone:
		return p.phones[who.shard].has(who.key[0], who.place)
	}
	return p.others[who.shard].has(who.key, who.place)
}

// add puts a person into the set and reports whether it was not there. Its only
// error is errBudget.
func (p *people) add(who person) (bool, error) {
	switch who.kind {
	case ofPlan:
		return p.addPlanned(who)
	case ofPhone:
		return p.phones[who.shard].add(who.key[0], who.place, &p.budget, func(n uint64) uint32 {
			return place(mix(n ^ p.phoneKey))
		})
	}
	return p.others[who.shard].add(who.key, who.place, &p.budget, func(d digest) uint32 { return place(d[0]) })
}

// addPlanned is add for a number of the plan.
func (p *people) addPlanned(who person) (bool, error) {
	if p.plan == nil {
		const taken = planShards*int64(unsafe.Sizeof(table[uint16]{})) + planShards/8
		if taken > p.budget {
			return false, errBudget
		}
		p.budget -= taken
		p.plan, p.zeros = make([]table[uint16], planShards), make([]uint64, planShards/64)
	}
	key := uint16(who.key[0]) //nolint:gosec // it was put there as that
	if key == 0 {
		word, bit := &p.zeros[who.shard/64], uint64(1)<<(who.shard%64)
		added := *word&bit == 0
		*word |= bit
		return added, nil
	}
	return p.plan[who.shard].add(key, who.place, &p.budget, planPlace)
}

// mix is the finalizer of splitmix64, a bijection.
func mix(n uint64) uint64 {
	n = (n ^ n>>30) * 0xBF58476D1CE4E5B9
	n = (n ^ n>>27) * 0x94D049BB133111EB
	return n ^ n>>31
}

// e164 reads "+" and 2 to 18 digits, the first not zero, so that no two texts
// are one number.
func e164(id []byte) (uint64, bool) {
	if len(id) < 3 || len(id) > 19 || id[0] != '+' || id[1] == '0' {
		return 0, false
	}
	var n uint64
	for _, c := range id[1:] {
		d := c - '0'
		if d > 9 {
			return 0, false
		}
		n = n*10 + uint64(d)
	}
	return n, true
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

// add adds key, whose place among all 2^32 is at, and reports whether it was not
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
