/* Products with weights of 4 and 8 bits in blocks, and rows of a table of such weights. */
#ifndef FLEETC_BLOCKS_H
#define FLEETC_BLOCKS_H

/* Makes two functions known to compiled code, which graph/blocks.py has call them:
 *
 *   fleetc.block_product  values (rows, inputs), weights, form (4)  ->  (rows, outputs)
 *   fleetc.block_rows     ids (rows), weights, form (4)  ->  (rows, inputs)
 *
 * The form is bits, block, outputs and inputs. Weights are records, one for each OUTPUTS outputs and block of inputs:
 * scales (float16), with 4 bits zero points (bytes), and integers, four inputs of each output side by side; of 4 bits the
 * first four outputs in the lower half of each byte. Values are rounded to 8 bits in the same blocks, and products are
 * summed in integers. */
void register_blocks(void);

#endif
