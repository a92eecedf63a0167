//go:build long

package identifier_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"github.com/nyaruka/phonenumbers"
)

// TestEveryExchange asks the library about every area code with every exchange, and
// a line chosen by chance: a million numbers, some of each state of the automaton.
func TestEveryExchange(t *testing.T) {
	t.Parallel()
	p := newPhones(t, "US")
	each(1000, func(area int, r *rand.Rand) {
		for exchange := range 1000 {
			agree(t, p, "US", fmt.Sprintf("+1%03d%03d%04d", area, exchange, r.IntN(10_000)))
		}
	})
}

// TestNotationsOfEveryRegion writes digits as people do, and reads them as each
// region of the world would.
func TestNotationsOfEveryRegion(t *testing.T) {
	t.Parallel()
	var regions []string
	for region := range phonenumbers.GetSupportedRegions() {
		regions = append(regions, region)
	}
	each(len(regions), func(i int, r *rand.Rand) {
		p := newPhones(t, regions[i])
		for range 50 {
			for _, notation := range notations {
				agree(t, p, regions[i], fmt.Sprintf(notation,
					fmt.Sprintf("%03d", r.IntN(1000)), fmt.Sprintf("%03d", r.IntN(1000)), fmt.Sprintf("%04d", r.IntN(10_000))))
			}
		}
	})
}

// each calls with for 0 to n-1, on every processor.
func each(n int, with func(i int, r *rand.Rand)) {
	work := make(chan int)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for i := range work {
				with(i, rand.New(rand.NewPCG(uint64(i), 7)))
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	workers.Wait()
}
