package demo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"attentive.internal/deploy/allinone/account"
	"attentive.internal/deploy/allinone/dataset"
	"attentive.internal/pkg/broker"
	"attentive.internal/pkg/contract"
	"attentive.internal/pkg/publish"
	attentivev1 "attentive.internal/proto/attentive/v1"
	"github.com/google/uuid"
)

// Names that are sent.
const (
	campaign = "Winback"
	preview  = "VIP Preview"
)

// publish publishes the three jobs: a campaign whose audiences lie in the object
// store and in a file, the result of a query inside its job, and attributes.
func (p *play) publish(ctx context.Context, conn *broker.Conn) ([]*job, error) {
	client := publish.New(conn)
	winback := &attentivev1.SegmentJob{
		Id: p.id("winback"), Destination: account.Segments, Template: account.Template,
		Requester: &attentivev1.Requester{Name: "demo", Policies: []attentivev1.Policy{attentivev1.Policy_POLICY_AMPIQ_USER}},
		Origin:    &attentivev1.SegmentJob_Campaign{Campaign: &attentivev1.Campaign{Name: campaign}},
	}
	rows := 0
	for i, g := range p.set.Groups {
		give := p.object
		if i == len(p.set.Groups)-1 {
			give = p.file
		}
		source, err := give(ctx, client, g.File)
		if err != nil {
			return nil, err
		}
		winback.Groups = append(winback.Groups, &attentivev1.Group{Name: g.Name, Source: source})
		rows += g.Want.Rows
	}
	vip, err := p.preview()
	if err != nil {
		return nil, err
	}
	loyalty := &attentivev1.AttributesJob{
		Id: p.id("loyalty"), Destination: account.Attributes, Template: account.Template,
		Origin: &attentivev1.AttributesJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: "Loyalty"}},
	}
	if loyalty.Source, err = p.object(ctx, client, p.set.Attributes.File); err != nil {
		return nil, err
	}
	// The repetition of a job that an earlier run published changes nothing.
	_, err1 := client.SegmentJob(ctx, winback)
	_, err2 := client.SegmentJob(ctx, vip)
	_, err3 := client.AttributesJob(ctx, loyalty)
	return []*job{
		{kind: contract.Segment, destination: account.Segments, id: winback.GetId(), label: "Winback    ", rows: rows},
		{kind: contract.Segment, destination: account.Segments, id: vip.GetId(), label: "VIP Preview", rows: p.set.Preview.Want.Rows},
		{kind: contract.Expand, destination: account.Attributes, id: loyalty.GetId(), label: "Attributes ", rows: p.set.Attributes.Want.Rows},
	}, errors.Join(err1, err2, err3)
}

// preview composes the job that carries its rows.
func (p *play) preview() (*attentivev1.SegmentJob, error) {
	rows, err := os.ReadFile(filepath.Join(p.Inputs(), p.set.Preview.File))
	if err != nil {
		return nil, err
	}
	return &attentivev1.SegmentJob{
		Id: p.id("preview"), Destination: account.Segments, Template: account.Template,
		Origin: &attentivev1.SegmentJob_Orchestration{Orchestration: &attentivev1.Orchestration{SegmentName: preview}},
		Groups: []*attentivev1.Group{{
			Name:   p.set.Preview.Name,
			Source: &attentivev1.Source{Location: &attentivev1.Source_Inline{Inline: rows}, Format: attentivev1.Format_FORMAT_CSV},
		}},
	}, nil
}

// id of a job follows from what it sends, so that a repeated demo repeats it.
func (p *play) id(name string) string {
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte("attentive-relay demo "+p.version(name))).String()
}

func (p *play) version(name string) string {
	in := p.options.Input
	return fmt.Sprintf("%s-%d-%d-%d", name, in.Rows, in.Profiles, in.Seed)
}

// object puts an input into the object store.
func (p *play) object(ctx context.Context, client *publish.Client, name string) (source *attentivev1.Source, err error) {
	f, err := os.Open(filepath.Join(p.Inputs(), name))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	source, err = client.Audience(ctx, p.version(name), f)
	if err != nil {
		return nil, err
	}
	return written(source, name), nil
}

// file leaves an input where it is, for the worker to read there.
func (p *play) file(_ context.Context, _ *publish.Client, name string) (source *attentivev1.Source, err error) {
	f, err := os.Open(filepath.Join(p.Inputs(), name))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return nil, err
	}
	source = &attentivev1.Source{Location: &attentivev1.Source_Url{Url: p.URL(name)}, Sha256: sum.Sum(nil)}
	return written(source, name), nil
}

// written says how the rows are written, as the name of their file has it.
func written(s *attentivev1.Source, name string) *attentivev1.Source {
	s.Format = attentivev1.Format_FORMAT_CSV
	if strings.Contains(name, ".ndjson") {
		s.Format = attentivev1.Format_FORMAT_NDJSON
	}
	if strings.HasSuffix(name, ".gz") {
		s.Compression = attentivev1.Compression_COMPRESSION_GZIP
	}
	return s
}

// segments are what must be in Attentive at the end, by name.
func (p *play) segments() map[string]dataset.Counts {
	want := map[string]dataset.Counts{strings.ReplaceAll(preview, " ", ""): p.set.Preview.Want}
	for _, g := range p.set.Groups {
		want[campaign+strings.ReplaceAll(g.Name, " ", "")] = g.Want
	}
	return want
}
