package attentive

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"attentive.internal/pkg/fault"
)

// MaxBulkRecords is the most records of one call of [Client.SetBulkAttributes].
const MaxBulkRecords = 256

// resultTimeout is how long the results of a batch may take to be read.
const resultTimeout = time.Minute

// maxResultLine bounds a line of results: a row has 1 MiB at most, and its answer
// less.
const maxResultLine = 2 << 20

// BulkJob says where a batch stands.
type BulkJob struct {
	// Status is COMPLETED, FAILED, CANCELLED, or any other while it may still be
	// worked: PENDING, IN_PROGRESS, NEEDS_REVIEW.
	Status string `json:"status"`
	// Results is where the results of a completed batch are, for some time. It may
	// be missing.
	Results string `json:"url"`
}

// Check reports, as the error that a call with a would end with, what makes a
// impossible to send. Such a record would have a whole batch refused.
func (a Attributes) Check() error {
	request := call{method: http.MethodPost, path: bulkPath}
	if _, err := a.record(); err != nil {
		return request.invalid(err)
	}
	return nil
}

const bulkPath = "/v2/bulk/user/attributes"

// bulkRecord is how a record travels: its ids lie flat, whatever they are.
type bulkRecord struct {
	Identifiers bulkIdentifiers `json:"identifiers"`
	Attributes  bulkAttributes  `json:"attributes"`
}

type bulkAttributes struct {
	Custom map[string]any `json:"custom"`
}

type bulkIdentifiers struct {
	Email        string   `json:"email,omitempty"`
	Phone        string   `json:"phone,omitempty"`
	ShopifyID    string   `json:"shopifyId,omitempty"`
	KlaviyoID    string   `json:"klaviyoId,omitempty"`
	ClientUserID string   `json:"clientUserId,omitempty"`
	Custom       []bulkID `json:"customIdentifiers,omitempty"`
}

type bulkID struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// record returns a as it travels.
func (a Attributes) record() (bulkRecord, error) {
	ids := bulkIdentifiers{
		Email: a.User.Email, Phone: a.User.Phone,
		ShopifyID: a.External.ShopifyID, KlaviyoID: a.External.KlaviyoID, ClientUserID: a.External.ClientUserID,
	}
	for key, value := range a.External.Custom {
		if key != "" && value != "" {
			ids.Custom = append(ids.Custom, bulkID{key, value})
		}
	}
	slices.SortFunc(ids.Custom, func(a, b bulkID) int { return strings.Compare(a.Key, b.Key) })
	if a.User == (User{}) && a.External.wire() == nil {
		return bulkRecord{}, errors.New("no identifier")
	}
	if err := checkValues(a.Values); err != nil {
		return bulkRecord{}, err
	}
	return bulkRecord{ids, bulkAttributes{a.Values}}, nil
}

// SetBulkAttributes sets attributes of up to [MaxBulkRecords] users, and returns
// the id of the batch. An answer without an error means that it was accepted; what
// became of its records is told by [Client.BulkJob] and [Client.BulkResults].
func (c *Client) SetBulkAttributes(ctx context.Context, all []Attributes) (job string, result Result, err error) {
	request := call{method: http.MethodPost, path: bulkPath}
	if len(all) < 1 || len(all) > MaxBulkRecords {
		return "", Result{}, request.invalid(fmt.Errorf("%d records, want 1 to %d", len(all), MaxBulkRecords))
	}
	body := struct {
		Users []bulkRecord `json:"users"`
	}{}
	for _, a := range all {
		record, err := a.record()
		if err != nil {
			return "", Result{}, request.invalid(err)
		}
		body.Users = append(body.Users, record)
		request.secrets = append(append(request.secrets, secretsOf(a.User, a.External)...), valuesOf(a.Values)...)
	}
	// Of so many some are a digit or two, which tell nothing and would turn an
	// answer into a row of gaps.
	request.secrets = slices.DeleteFunc(request.secrets, func(s string) bool { return len(s) < 3 })
	request.body = body
	var answer struct {
		Job string `json:"batchJobId"`
	}
	request.into = &answer
	result, err = c.do(ctx, request)
	if err == nil && answer.Job == "" {
		err = &fault.Error{Err: &callError{operation: request.operation(), status: result.Status, sent: true, err: errors.New("the answer has no batchJobId")}}
	}
	return answer.Job, result, err
}

// BulkJob asks where a batch stands.
func (c *Client) BulkJob(ctx context.Context, id string) (BulkJob, Result, error) {
	var job BulkJob
	result, err := c.do(ctx, call{method: http.MethodGet, path: "/v2/bulk/job/" + url.PathEscape(id), into: &job})
	return job, result, err
}

// BulkOutcome is what became of one record of a batch.
type BulkOutcome struct {
	// Identifiers are those of the record in one spelling: see [Attributes.Identity].
	Identifiers string
	// Refused says why the record was not taken, without personal data; empty when
	// it was.
	Refused string
}

// Identity spells the identifiers of a record in one way, to be compared with
// those of a [BulkOutcome].
func (a Attributes) Identity() string {
	record, _ := a.record() // what is wrong with its values makes no difference
	return record.Identifiers.spell()
}

func (ids bulkIdentifiers) spell() string {
	ids.Email = strings.ToLower(ids.Email)
	text, _ := json.Marshal(ids) // strings always can be
	return string(text)
}

// secrets are the identifiers that an error may not show.
func (ids bulkIdentifiers) secrets() []string {
	x := ExternalIDs{ClientUserID: ids.ClientUserID, ShopifyID: ids.ShopifyID, KlaviyoID: ids.KlaviyoID, Custom: make(map[string]string)}
	for _, id := range ids.Custom {
		x.Custom[id.Key] = id.Value
	}
	return secretsOf(User{Phone: ids.Phone, Email: ids.Email}, x)
}

// ErrResults is returned by [Client.BulkResults] for results in a form that it
// does not know.
var ErrResults = errors.New("the results are not in the documented form")

// BulkResults reads the results of a batch, in their order, from where its job
// says that they are. It is no call of the API, has no limit, and sends no key.
func (c *Client) BulkResults(ctx context.Context, results string) (all []BulkOutcome, err error) {
	target, err := url.Parse(results)
	if err != nil || target.Host == "" || target.Scheme != "https" && (target.Scheme != "http" || target.Host != c.base.Host) {
		return nil, fmt.Errorf("%w: their url does not begin with https://", ErrResults)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, resultTimeout, errTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), http.NoBody)
	if err != nil {
		return nil, errors.New("results of a batch: their url cannot be asked for")
	}
	response, err := c.transport.RoundTrip(request)
	if err != nil {
		return nil, fmt.Errorf("results of a batch: %w", cause(ctx, err))
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("results of a batch: status %d", response.StatusCode)
	}
	return readResults(response.Body)
}

// readResults reads lines of JSON, each a request and what it was answered.
func readResults(r io.Reader) (all []BulkOutcome, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxResultLine)
	for lines.Scan() {
		if len(strings.TrimSpace(lines.Text())) == 0 {
			continue
		}
		if len(all) == MaxBulkRecords {
			return nil, fmt.Errorf("%w: more than %d lines", ErrResults, MaxBulkRecords)
		}
		outcome, err := readOutcome(lines.Bytes())
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrResults, len(all)+1, err)
		}
		all = append(all, outcome)
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		return nil, fmt.Errorf("%w: line %d is longer than %d bytes", ErrResults, len(all)+1, maxResultLine)
	}
	return all, lines.Err()
}

// readOutcome reads a line of results. Attentive publishes that it holds request
// and response and not how: a response is read by the status that it must have.
func readOutcome(line []byte) (BulkOutcome, error) {
	var record struct {
		Request  bulkRecord `json:"request"`
		Response struct {
			Status     *int            `json:"status"`
			StatusCode *int            `json:"statusCode"`
			Code       *int            `json:"code"`
			Message    json.RawMessage `json:"message"`
		} `json:"response"`
	}
	if json.Unmarshal(line, &record) != nil { // whose text may quote the line
		return BulkOutcome{}, errors.New("not request and response in JSON")
	}
	status := record.Response.Status
	for _, other := range []*int{record.Response.StatusCode, record.Response.Code} {
		if status == nil {
			status = other
		}
	}
	if status == nil {
		return BulkOutcome{}, errors.New("its response has no status")
	}
	o := BulkOutcome{Identifiers: record.Request.Identifiers.spell()}
	if *status/100 != 2 {
		secrets := append(record.Request.Identifiers.secrets(), valuesOf(record.Request.Attributes.Custom)...)
		o.Refused = fmt.Sprintf("the batch's result for the row: status %d: %s", *status, scrub(record.Response.Message, secrets))
	}
	return o, nil
}
