package cli

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/deadletter"
)

// selection is which dead letters a command acts on.
type selection struct {
	all    bool
	only   filter
	chosen deadletter.Filter
	ids    []uint64
}

// flags adds those that choose; verb says what is done to the letters.
func (c *selection) flags(cmd *cobra.Command, verb string) {
	cmd.Flags().BoolVar(&c.all, "all", false, verb+" all that are stored now, or all that the filters choose")
	c.only.flags(cmd.Flags())
	c.only.complete(cmd)
}

// parse judges flags and arguments.
func (c *selection) parse(args []string, verb string) (err error) {
	if c.chosen, err = c.only.parse(); err != nil {
		return err
	}
	switch {
	case c.all && len(args) > 0:
		return errors.New("name dead letters or use --all, not both")
	case !c.all && c.chosen != deadletter.Filter{}:
		return errors.New("filters choose among all dead letters: use them with --all")
	case !c.all && len(args) == 0:
		return fmt.Errorf("name the dead letters to %s, as `dead-letters list` shows them, or use --all", verb)
	}
	c.ids = nil
	for _, arg := range args {
		id, err := parseID(arg)
		if err != nil {
			return err
		}
		c.ids = append(c.ids, id)
	}
	return nil
}

func parseID(arg string) (uint64, error) {
	id, err := strconv.ParseUint(arg, 10, 64)
	if err != nil || id == 0 {
		return 0, fmt.Errorf("%q is no id of a dead letter: ids are numbers from 1, as `dead-letters list` shows them", arg)
	}
	return id, nil
}

// String says what was chosen, for the record.
func (c *selection) String() string {
	if !c.all {
		return fmt.Sprintf("dead letters %v", c.ids)
	}
	parts := []string{"all dead letters"}
	for _, part := range [][2]string{
		{"reason", c.only.reason}, {"destination", c.only.destination}, {"kind", c.only.kind}, {"job", c.only.job},
	} {
		if part[1] != "" {
			parts = append(parts, part[0]+" "+part[1])
		}
	}
	return strings.Join(parts, ", ")
}

// letters yields what was chosen, with its data. gone is called with each id under
// which nothing lies any more; an id that never was one is an error at the end, and
// hinders no other.
func (c *selection) letters(ctx context.Context, conn *broker.Conn, store *deadletter.Store, gone func(id uint64)) iter.Seq2[deadletter.Letter, error] {
	if c.all {
		return store.Read(ctx, c.chosen)
	}
	return func(yield func(deadletter.Letter, error) bool) {
		last, err := lastID(ctx, conn)
		if err != nil {
			yield(deadletter.Letter{}, err)
			return
		}
		var unknown []string
		for _, id := range c.ids {
			l, err := store.Get(ctx, id)
			switch {
			case errors.Is(err, deadletter.ErrNotFound) && id > last:
				unknown = append(unknown, fmt.Sprintf("dead letter %d: there never was one; see `dead-letters list`", id))
				continue
			case errors.Is(err, deadletter.ErrNotFound):
				gone(id)
				continue
			}
			if !yield(l, err) || err != nil {
				return
			}
		}
		if len(unknown) > 0 {
			yield(deadletter.Letter{}, errors.New(strings.Join(unknown, "\n")))
		}
	}
}

// lastID is the highest id that a dead letter ever had.
func lastID(ctx context.Context, conn *broker.Conn) (uint64, error) {
	stream, err := conn.JS.Stream(ctx, broker.StreamDead)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", broker.StreamDead, err)
	}
	return stream.CachedInfo().State.LastSeq, nil
}
