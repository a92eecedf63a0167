package audience

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
)

// errBudget says that the set may not grow.
var errBudget = errors.New("memory budget spent")

const (
	// A number of the North American plan has ten digits after "+1", of which the
	// first is never 0 or 1: less planFirst it has planBits.
	planDigits = 10
	planFirst  = 1_200_000_0000
	planMask   = 1<<planBits - 1
	// many numbers of the plan are worth the smallest dense set.
	many = 1 << 16
	// A reserveShare-th of the budget is kept from the dense set, for the numbers
	// for which that has no room.
	reserveShare = 8
)

// people is a set of identifiers, exact for phone numbers. An e-mail address is
// known by 128 bits of a SHA-256 under a random key: among 10 million addresses
// two are taken for one with a probability below 10^-24.
//
// Numbers of the North American plan, the bulk of all, take 2 bytes a slot once
// there are many of them, other numbers 8, everything else 16.
type people struct {
	budget  int64 // bytes that may still be taken
	reserve int64 // of it, not for plan

	plan   *dense  // nil until there are many
	few    numbers // of the plan: all while it is nil, then those it has no room for
	phones numbers
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
	keys := &people{
		planKey:  binary.LittleEndian.Uint64(seed[0:]),
		phoneKey: binary.LittleEndian.Uint64(seed[8:]),
		hashed:   append(make([]byte, 0, 512), seed[16:]...),
	}
	return keys.empty(budget), nil
}

// empty returns an empty set with a budget of its own, for which persons are the
// same.
func (p *people) empty(budget int64) *people {
	return &people{budget: budget, reserve: budget / reserveShare, planKey: p.planKey, phoneKey: p.phoneKey, hashed: p.hashed}
}

// person is an identifier as the set keeps it.
type person struct {
	kind kind
	hash uint64 // chooses the place
	key  digest // of a number only the first half
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
		return otherPerson(digest{binary.LittleEndian.Uint64(sum[0:]), binary.LittleEndian.Uint64(sum[8:]) | 1})
	case len(id) == len("+1")+planDigits && id[1] == '1' && id[2] >= '2':
		return p.planned(number - planFirst)
	}
	return p.phonePerson(number)
}

func otherPerson(key digest) person { return person{ofOther, key[0], key} }

func (p *people) phonePerson(number uint64) person {
	return person{ofPhone, mix(number ^ p.phoneKey), digest{number}}
}

// planned returns what stands for a number of the plan. The mixing is a bijection
// on planBits: what it gives is the whole number.
func (p *people) planned(number uint64) person {
	h := (number ^ p.planKey) & planMask
	h = h * 0x9E3779B97F4A7C15 & planMask
	h ^= h >> (planBits/2 + 1)
	h = h * 0xBF58476D1CE4E5B9 & planMask
	h ^= h >> (planBits / 2)
	return plannedPerson(h)
}

// plannedPerson is a number of the plan, mixed.
func plannedPerson(h uint64) person { return person{ofPlan, h, digest{h}} }

// partition divides people evenly, also those of one shard or bucket.
func (who person) partition() uint64 {
	if who.kind == ofPlan {
		return who.hash >> (planBits - partitionBits)
	}
	return who.hash % partitions
}

// fetch reads where each of several persons would be. The reads do not wait for
// each other, as those of add do: for a large set this halves the time.
func (p *people) fetch(batch []person) {
	var read uint64
	for i := range batch {
		switch b := &batch[i]; b.kind {
		case ofPlan:
			if p.plan != nil {
				read ^= p.plan.bucket(b.hash)[0]
			}
		case ofPhone:
			read ^= p.phones.peek(b.hash)
		default:
			read ^= p.others[shard(b.hash)].peek(at(b.hash))[0]
		}
	}
	p.fetched = read // or the compiler would drop the reads
}

// has reports whether a person is in the set.
func (p *people) has(who person) bool {
	switch who.kind {
	case ofPlan:
		if p.plan != nil {
			if is := p.plan.find(who.hash); is != crowded {
				return is == known
			}
		}
		return p.few.has(p.fewNumber(who.hash))
	case ofPhone:
		return p.phones.has(who.key[0], who.hash)
	}
	return p.others[shard(who.hash)].has(who.key, at(who.hash))
}

// add puts a person into the set and reports whether it was not there. Its only
// error is errBudget.
func (p *people) add(who person) (bool, error) {
	switch who.kind {
	case ofPlan:
		return p.addPlanned(who.hash)
	case ofPhone:
		return p.phones.add(who.key[0], who.hash, &p.budget, func(n uint64) uint64 { return mix(n ^ p.phoneKey) })
	}
	return p.others[shard(who.hash)].add(who.key, at(who.hash), &p.budget, func(d digest) uint32 { return at(d[0]) })
}

// addPlanned is add for a number of the plan, mixed.
func (p *people) addPlanned(h uint64) (bool, error) {
	if p.plan != nil {
		if is := p.plan.add(h); is != crowded {
			if p.plan.due() {
				p.spread()
			}
			return is == added, nil
		}
	}
	isNew, err := p.addFew(h)
	if p.plan == nil && p.few.used == many {
		p.spread()
	}
	return isNew, err
}

// Zero is no number of a table, so numbers of the plan are there with a bit that
// they have not.
const fewBit = 1 << planBits

// fewNumber returns a number of the plan, mixed, as few has it, and its hash.
func (p *people) fewNumber(h uint64) (number, hash uint64) {
	return h | fewBit, mix(h ^ p.phoneKey)
}

func (p *people) addFew(h uint64) (bool, error) {
	number, hash := p.fewNumber(h)
	return p.few.add(number, hash, &p.budget, func(n uint64) uint64 { return mix(n&^fewBit ^ p.phoneKey) })
}

// spread makes the dense set, or doubles it as far as the budget goes, and moves
// to it what few has.
func (p *people) spread() {
	affordable := int((p.budget - p.reserve) / chunkBytes)
	switch {
	case p.plan == nil && affordable < minChunks:
		return
	case p.plan == nil:
		p.plan = newDense()
		p.budget -= minChunks * chunkBytes
	case affordable <= 0:
		return
	default:
		chunks := min(affordable, p.plan.unsplit())
		p.plan.split(chunks)
		p.budget -= int64(chunks) * chunkBytes
	}
	old := p.few
	p.few = numbers{}
	p.budget += old.bytes()
	for number := range old.all() {
		if h := number &^ fewBit; p.plan.add(h) == crowded {
			_, _ = p.addFew(h) // has room: it takes no more than old did
		}
	}
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
