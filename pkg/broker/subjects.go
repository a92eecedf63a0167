package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Subjects calls each with every subject of the stream that matches filter, and
// how many messages it has, in no order. The broker tells at most 100,000 at a
// time, and no more are held; what changes meanwhile may be missed. An error of
// each ends it.
func (c *Conn) Subjects(ctx context.Context, stream, filter string, each func(subject string, messages uint64) error) error {
	for offset := 0; ; {
		page, err := c.subjects(ctx, stream, filter, offset)
		if err != nil {
			return fmt.Errorf("subjects %s of %s: %w", filter, stream, Explain(err))
		}
		for subject, n := range page.State.Subjects {
			if err := each(subject, n); err != nil {
				return err
			}
		}
		// Not by what came: subjects that are no UTF-8 become one.
		if offset += page.Limit; page.Limit == 0 || offset >= page.Total {
			return nil
		}
	}
}

// pageTimeout is how long the broker may take to tell of 100,000 subjects: more than a
// second when it is busy.
const pageTimeout = 30 * time.Second

// subjectsPage is a part of the broker's answer to STREAM.INFO.
type subjectsPage struct {
	Error *jetstream.APIError `json:"error"`
	Total int                 `json:"total"`
	Limit int                 `json:"limit"`
	State struct {
		Subjects map[string]uint64 `json:"subjects"`
	} `json:"state"`
}

// subjects asks for one page. The client library's StreamInfo puts all of them
// together.
func (c *Conn) subjects(ctx context.Context, stream, filter string, offset int) (subjectsPage, error) {
	var page subjectsPage
	request, err := json.Marshal(struct {
		Filter string `json:"subjects_filter"`
		Offset int    `json:"offset"`
	}{filter, offset})
	if err != nil {
		return page, err
	}
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	answer, err := c.ask(ctx, "$JS.API.STREAM.INFO."+stream, request, listAgain)
	if err != nil {
		return page, err
	}
	if err := json.Unmarshal(answer.Data, &page); err != nil {
		return page, fmt.Errorf("decode the broker's answer: %w", err)
	}
	if page.Error != nil {
		return page, page.Error
	}
	return page, nil
}
