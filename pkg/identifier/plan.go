package identifier

import (
	"encoding/binary"
	"fmt"
	"regexp/syntax"
	"slices"
	"sync"

	"github.com/nyaruka/phonenumbers"
)

// planDigits is how many digits a number of the North American plan has after
// its country code.
const planDigits = 10

// plan decides which ten-digit numbers of country code 1 are valid.
//
// It is the library's own metadata, not a copy of it: the patterns of all regions
// of the plan are compiled into one automaton that reads a digit at a time, and
// is minimized. Its verdict is that of phonenumbers.IsValidNumber for numbers that
// begin with 2 to 9; those that begin with 0 or 1 may hold a trunk prefix, and
// are not judged.
type plan struct {
	// next holds the successor of each state by digit. States 0 and 1 are the
	// verdicts themselves, whatever digits follow.
	next  [][10]uint16
	start uint16
}

// The verdicts of a plan; the first two are states of its automaton.
const (
	planRejects uint16 = iota
	planAccepts
	planUndecided
)

// verdict judges the ten bytes of digits.
func (p *plan) verdict(digits []byte) uint16 {
	if digits[0] < '2' {
		return planUndecided
	}
	state := p.start
	for i := range planDigits {
		d := digits[i] - '0'
		if d > 9 {
			return planUndecided
		}
		state = p.next[state][d]
	}
	return state
}

// northAmerica is the one plan. It is read only, so any number of goroutines may use
// it; it is made at the first use.
var northAmerica = sync.OnceValues(newPlan) //nolint:gochecknoglobals // never changes: made once of the library's metadata

// newPlan compiles the library's metadata, which takes twenty milliseconds.
func newPlan() (*plan, error) {
	b := &planBuilder{patterns: make(map[string]int)}
	collection, err := phonenumbers.MetadataCollection()
	if err != nil {
		return nil, fmt.Errorf("phone metadata: %w", err)
	}
	byRegion := make(map[string]*phonenumbers.PhoneMetadata)
	for _, m := range collection.GetMetadata() {
		byRegion[m.GetId()] = m
	}
	// The order matters: the first region that claims a number judges it.
	for _, region := range phonenumbers.GetRegionCodesForCountryCode(phonenumbers.NANPA_COUNTRY_CODE) {
		if err := b.add(byRegion[region]); err != nil {
			return nil, fmt.Errorf("phone metadata of region %q: %w", region, err)
		}
	}
	return b.build()
}

// claim is how one region judges a number. The numbers are those of patterns.
type claim struct {
	// leading patterns claim a number by its first digits; none: the region claims
	// the numbers it finds valid.
	leading []int
	general []int
	types   []int
}

type planBuilder struct {
	insts    []syntax.Inst
	patterns map[string]int // number of each pattern
	starts   []uint32       // first instruction of each pattern
	matches  []uint32       // matching instruction of each pattern
	claims   []claim
}

// add takes in the rules of one region.
func (b *planBuilder) add(m *phonenumbers.PhoneMetadata) error {
	var c claim
	if leading := m.GetLeadingDigits(); leading != "" {
		n, err := b.pattern("(?:" + leading + `)\d*`)
		if err != nil {
			return err
		}
		c.leading = append(c.leading, n)
	}
	general, err := b.descriptions(m.GetGeneralDesc())
	if err != nil {
		return err
	}
	kinds := []*phonenumbers.PhoneNumberDesc{
		m.GetPremiumRate(), m.GetTollFree(), m.GetSharedCost(), m.GetVoip(), m.GetPersonalNumber(),
		m.GetPager(), m.GetUan(), m.GetVoicemail(), m.GetFixedLine(),
	}
	if !m.GetSameMobileAndFixedLinePattern() {
		kinds = append(kinds, m.GetMobile())
	}
	types, err := b.descriptions(kinds...)
	if err != nil {
		return err
	}
	c.general, c.types = general, types
	b.claims = append(b.claims, c)
	return nil
}

// descriptions returns the numbers of those patterns that a number of ten
// digits can match.
func (b *planBuilder) descriptions(descs ...*phonenumbers.PhoneNumberDesc) ([]int, error) {
	var numbers []int
	for _, d := range descs {
		if lengths := d.GetPossibleLength(); len(lengths) > 0 && !slices.Contains(lengths, planDigits) {
			continue
		}
		n, err := b.pattern(d.GetNationalNumberPattern())
		if err != nil {
			return nil, err
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

// pattern compiles text, which matches a whole number, and returns its number.
func (b *planBuilder) pattern(text string) (int, error) {
	if n, ok := b.patterns[text]; ok {
		return n, nil
	}
	re, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return 0, fmt.Errorf("pattern %q: %w", text, err)
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return 0, fmt.Errorf("pattern %q: %w", text, err)
	}
	offset := uint32(len(b.insts))
	match := offset
	for i, inst := range prog.Inst {
		inst.Out += offset
		switch inst.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			inst.Arg += offset
		case syntax.InstEmptyWidth:
			return 0, fmt.Errorf("pattern %q: holds an anchor", text)
		case syntax.InstMatch:
			match = offset + uint32(i)
		}
		b.insts = append(b.insts, inst)
	}
	n := len(b.starts)
	b.patterns[text] = n
	b.starts = append(b.starts, offset+uint32(prog.Start))
	b.matches = append(b.matches, match)
	return n, nil
}

// close adds pc to set together with all it leads to without a digit.
func (b *planBuilder) close(set []uint32, pc uint32) []uint32 {
	if slices.Contains(set, pc) {
		return set
	}
	set = append(set, pc)
	switch inst := &b.insts[pc]; inst.Op {
	case syntax.InstAlt, syntax.InstAltMatch:
		return b.close(b.close(set, inst.Out), inst.Arg)
	case syntax.InstCapture, syntax.InstNop:
		return b.close(set, inst.Out)
	}
	return set
}

// step returns the set reached from set by the digit d.
func (b *planBuilder) step(set []uint32, d int) []uint32 {
	var to []uint32
	for _, pc := range set {
		switch inst := &b.insts[pc]; inst.Op {
		case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			if inst.MatchRune(rune('0' + d)) {
				to = b.close(to, inst.Out)
			}
		}
	}
	slices.Sort(to)
	return to
}

// valid judges a whole number by the set reached at its end, as
// phonenumbers.IsValidNumber does.
func (b *planBuilder) valid(set []uint32) bool {
	matches := func(numbers []int) bool {
		return slices.ContainsFunc(numbers, func(n int) bool { return slices.Contains(set, b.matches[n]) })
	}
	for _, c := range b.claims {
		valid := matches(c.general) && matches(c.types)
		if c.leading == nil && !valid {
			continue
		}
		if c.leading == nil || matches(c.leading) {
			return valid
		}
	}
	return false
}

// build makes the automaton: forward over the sets that can be reached digit by
// digit, then backward, so that states with the same future become one.
func (b *planBuilder) build() (*plan, error) {
	var first []uint32
	for _, pc := range b.starts {
		first = b.close(first, pc)
	}
	slices.Sort(first)

	layers := [][][]uint32{{first}} // the sets after each number of digits
	var edges [][][10]int           // per layer and set, the index of the set in the next layer
	for depth := range planDigits {
		index := make(map[string]int)
		var sets [][]uint32
		out := make([][10]int, len(layers[depth]))
		for i, set := range layers[depth] {
			for d := range 10 {
				to := b.step(set, d)
				key := setKey(to)
				n, ok := index[key]
				if !ok {
					n = len(sets)
					index[key] = n
					sets = append(sets, to)
				}
				out[i][d] = n
			}
		}
		layers = append(layers, sets)
		edges = append(edges, out)
	}

	p := &plan{next: make([][10]uint16, planUndecided)}
	for d := range 10 {
		p.next[planAccepts][d] = planAccepts
	}
	state := make([]uint16, len(layers[planDigits]))
	for i, set := range layers[planDigits] {
		if b.valid(set) {
			state[i] = planAccepts
		}
	}
	for depth := planDigits - 1; depth >= 0; depth-- {
		var err error
		if state, err = p.fold(edges[depth], state); err != nil {
			return nil, err
		}
	}
	p.start = state[0]
	return p, nil
}

// fold adds a state for each distinct row of edges and returns the state of each
// row; after holds the states of the next layer.
func (p *plan) fold(edges [][10]int, after []uint16) ([]uint16, error) {
	known := map[[10]uint16]uint16{p.next[planRejects]: planRejects, p.next[planAccepts]: planAccepts}
	states := make([]uint16, len(edges))
	for i, edge := range edges {
		var row [10]uint16
		for d, n := range edge {
			row[d] = after[n]
		}
		state, ok := known[row]
		if !ok {
			if len(p.next) > 1<<16-1 {
				return nil, fmt.Errorf("phone metadata: the plan of country code %d has too many states", phonenumbers.NANPA_COUNTRY_CODE)
			}
			state = uint16(len(p.next))
			known[row] = state
			p.next = append(p.next, row)
		}
		states[i] = state
	}
	return states, nil
}

func setKey(set []uint32) string {
	key := make([]byte, 0, 4*len(set))
	for _, pc := range set {
		key = binary.LittleEndian.AppendUint32(key, pc)
	}
	return string(key)
}
