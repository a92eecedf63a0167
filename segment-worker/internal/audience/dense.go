package audience

import "math/bits"

const (
	// A bucket of the dense set is a cache line of 32 slots.
	bucketWords = 8
	bucketSlots = 4 * bucketWords
	bucketBytes = 8 * bucketWords
	// Of a key of planBits the low 18 are at least known from its bucket; a slot
	// holds the others and slotTaken.
	planBits      = 33
	keptBits      = 15
	minBucketBits = planBits - keptBits
	slotTaken     = 1 << keptBits
	// Buckets are split in two once they hold that many keys on average: then one
	// in 300 keys finds its bucket full.
	splitAt = 24
	// chunkBuckets are allocated together, a MiB.
	chunkBuckets = 1 << 14
	minChunks    = 1 << minBucketBits / chunkBuckets
	chunkBytes   = chunkBuckets * bucketBytes
)

// The bits of four slots in a word.
const (
	eachSlot  = 0x0001_0001_0001_0001
	eachTaken = eachSlot * slotTaken
	eachKept  = eachSlot * (slotTaken - 1)
)

// bucket holds keys in its lowest slots.
type bucket [bucketWords]uint64

// dense is a set of keys of 33 bits, for very many of them: 2 bytes a slot, and
// one cache line to read for each key, whatever it is asked.
//
// It grows as linear hashing does: bucket i is split into i and i + the number
// there was, in place, by the next bit of the keys. What a slot holds never
// changes.
type dense struct {
	chunks []*[chunkBuckets]bucket
	n      uint64 // buckets; chunkBuckets a chunk
	mask   uint64 // of the bits that choose one; n may not have come that far
	used   uint64 // slots
}

// outcome is what became of a key.
type outcome uint8

const (
	added   outcome = iota
	known           // it was there
	crowded         // it is not there, and its bucket is full
)

func newDense() *dense {
	d := &dense{mask: 1<<minBucketBits - 1}
	d.extend(minChunks)
	return d
}

// extend adds empty buckets.
func (d *dense) extend(chunks int) {
	for range chunks {
		d.chunks = append(d.chunks, new([chunkBuckets]bucket))
	}
	d.n = uint64(len(d.chunks)) * chunkBuckets
}

// bucket returns the bucket of a key.
func (d *dense) bucket(key uint64) *bucket {
	i := key & d.mask
	if i >= d.n {
		i &= d.mask >> 1 // not split yet
	}
	return &d.chunks[i/chunkBuckets][i%chunkBuckets]
}

// add puts a key into the set, if it has room for it.
func (d *dense) add(key uint64) outcome {
	slot := key>>minBucketBits | slotTaken
	b := d.bucket(key)
	for i, word := range b {
		if holds(word, slot) {
			return known
		}
		if free := ^word & eachTaken; free != 0 {
			b[i] |= slot << (uint(bits.TrailingZeros64(free)) - keptBits) //nolint:gosec // 15, 31, 47 or 63
			d.used++
			return added
		}
	}
	return crowded
}

// find says what add would do.
func (d *dense) find(key uint64) outcome {
	slot := key>>minBucketBits | slotTaken
	for _, word := range d.bucket(key) {
		if holds(word, slot) {
			return known
		}
		if ^word&eachTaken != 0 {
			return added
		}
	}
	return crowded
}

// holds reports whether one of the four slots of a word is slot, without a branch.
// Both have the bit that says taken: so where they are equal nothing is left, and
// no sum below carries into the next slot.
func holds(word, slot uint64) bool {
	differs := word ^ slot*eachSlot
	return ^((differs&eachKept)+eachKept|differs)&eachTaken != 0
}

// due reports whether buckets are to be split.
func (d *dense) due() bool { return d.used > d.n*splitAt }

// unsplit is how many chunks can be split before any is split again.
func (d *dense) unsplit() int {
	if d.n > d.mask {
		return len(d.chunks)
	}
	return int((d.mask+1)/chunkBuckets) - len(d.chunks) //nolint:gosec // chunks
}

// split splits that many chunks, at most unsplit.
func (d *dense) split(chunks int) {
	from := d.n
	if from > d.mask {
		d.mask = d.mask<<1 | 1
	}
	d.extend(chunks)
	half := (d.mask + 1) / 2
	bit := uint(bits.TrailingZeros64(half)) - minBucketBits //nolint:gosec // of what a slot holds
	for i := from; i < d.n; i++ {
		j := i - half
		d.chunks[j/chunkBuckets][j%chunkBuckets].split(&d.chunks[i/chunkBuckets][i%chunkBuckets], bit)
	}
}

// split moves the keys that have a bit to an empty bucket.
func (b *bucket) split(to *bucket, bit uint) {
	var stay, move bucket
	var stays, moves uint
	for _, word := range b {
		for range bucketSlots / bucketWords {
			slot := word & (1<<(keptBits+1) - 1)
			word >>= keptBits + 1
			if slot == 0 {
				break
			}
			// Without a branch: nobody could foretell it.
			goes := uint(slot>>bit) & 1
			stay[stays/4%bucketWords] |= slot * uint64(1-goes) << (stays % 4 * (keptBits + 1))
			move[moves/4%bucketWords] |= slot * uint64(goes) << (moves % 4 * (keptBits + 1))
			stays += 1 - goes
			moves += goes
		}
	}
	*b, *to = stay, move
}
